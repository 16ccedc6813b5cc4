"""Stop strings in a stream of text.

A sequence passes the text of its tokens through it. Text that may be the beginning of a stop string is held back until
more text shows whether it is. The released text as a whole never depends on how the text was cut into pieces.
"""

from __future__ import annotations


class StopStrings:
    """Releases text up to the first of `stops` that is complete. If several are complete there, the longest counts.

    Text that is `hidden`, the name of a special token, can complete a stop string, but is never released.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self._hidden: list[tuple[int, int]] = []  # the parts of `_held` that are hidden: from, to
        self.found = False

    def push(self, text: str, hidden: bool = False) -> str:
        """Add `text` and return the text that can be released now; "" after a stop string."""
        if self.found:
            return ""
        if hidden:
            self._hidden.append((len(self._held), len(self._held) + len(text)))
        self._held += text
        starts = {stop: self._held.find(stop) for stop in self._stops}
        found = [(start + len(stop), start) for stop, start in starts.items() if start >= 0]
        if found:
            self.found = True
            released = self._release(min(found)[1])
            self._held = ""
            return released
        return self._release(len(self._held) - max((_overlap(self._held, stop) for stop in self._stops), default=0))

    def flush(self) -> str:
        """Return the text that is held back, because no more text follows."""
        return self._release(len(self._held))

    def _release(self, end: int) -> str:
        """Remove the first `end` characters, and return those that are not hidden."""
        text, self._held = self._held[:end], self._held[end:]
        if not self._hidden:
            return text
        for first, last in reversed(self._hidden):
            text = text[:first] + text[last:]
        moved = [(max(0, first - end), last - end) for first, last in self._hidden]
        self._hidden = [(first, last) for first, last in moved if last > 0]
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is also a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
