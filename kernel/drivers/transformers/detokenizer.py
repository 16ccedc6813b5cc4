"""Token ids to text, one at a time.

A sequence feeds it each generated token. It decodes a short window of tokens, which begins at a border between
characters, and releases the text that the window has gained. The window keeps spaces right: tokenizers decode the first
token of a text differently. It never releases a part of a character whose bytes are spread over tokens.
"""

from __future__ import annotations

from collections.abc import Callable

INCOMPLETE = "\ufffd"  # the output of decoders for bytes that are no character, or not yet
CONTEXT = 6  # tokens of the prompt that the first window begins with
WINDOW = 16  # tokens after which the window moves on
PATIENCE = 16  # tokens without a complete character after which bytes count as invalid, not as incomplete


class Detokenizer:
    """The text of a continuation of `prompt`. `decode` turns ids into text and leaves out special tokens."""

    def __init__(self, decode: Callable[[list[int]], str], prompt: list[int]) -> None:
        self._decode = decode
        size = CONTEXT
        while True:
            self._window = prompt[-size:]
            text = decode(self._window)
            if size >= len(prompt) or not text.startswith(INCOMPLETE):
                break
            size *= 2
        self._released = len(text)  # characters of the window's text that are released
        self._border = len(self._window)  # tokens of the window up to the last border between characters

    def push(self, token: int) -> str:
        """Add a token and return the text that is complete now."""
        self._window.append(token)
        text = self._decode(self._window)
        open_bytes = len(text) - len(text.rstrip(INCOMPLETE))
        if open_bytes and len(self._window) - self._border <= PATIENCE:
            return ""
        # Of bytes that are no character, only the last three can still become one.
        released = self._release(text, len(text) - min(open_bytes, 3))
        if not open_bytes:
            if len(self._window) > WINDOW:
                self._window = self._window[self._border :]
                self._released = len(self._decode(self._window))
            self._border = len(self._window)
        return released

    def flush(self) -> str:
        """Release the text that is held back: no more tokens follow."""
        text = self._decode(self._window)
        return self._release(text, len(text))

    def _release(self, text: str, end: int) -> str:
        released = text[self._released : end]
        self._released = max(self._released, end)
        return released
