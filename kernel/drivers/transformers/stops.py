"""Stop strings in a stream of text.

Fed by a sequence with the text of its tokens. Text that may still turn out to be the beginning of a stop string is held
back; where the text is cut into pieces makes no difference to what is released in the end.
"""

from __future__ import annotations


class StopStrings:
    """Releases text up to the first of `stops`: the one that is complete first, the longest of those that end there."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Take more text; answers what can be released. After a stop string that is nothing."""
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
        """What is held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
