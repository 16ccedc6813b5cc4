"""Stop strings in a stream of text.

A sequence passes the text of its tokens through it. Text that may be the beginning of a stop string is held back until
more text shows whether it is. The released text as a whole never depends on how the text was cut into pieces.
"""

from __future__ import annotations


class StopStrings:
    """Releases text up to the first of `stops` that is complete. If several are complete there, the longest counts."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Add `text` and return the text that can be released now; "" after a stop string."""
        if self.found:
            return ""
        text = self._held + text
        starts = {stop: text.find(stop) for stop in self._stops}
        found = [(start + len(stop), start) for stop, start in starts.items() if start >= 0]
        if found:
            self.found = True
            self._held = ""
            return text[: min(found)[1]]
        border = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[border:]
        return text[:border]

    def flush(self) -> str:
        """Return the text that is held back, because no more text follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is also a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
