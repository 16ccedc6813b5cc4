"""Token ids to text, one at a time.

A sequence passes each generated token through it. The detokenizer decodes a short window of tokens, which begins at a
border between characters, and releases the text that the window has gained. Without the earlier tokens in the window,
spaces would be wrong, because tokenizers decode the first token of a text differently. It never releases a part of a
character whose bytes are spread over tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable

INCOMPLETE = "\ufffd"  # tokenizers decode bytes that are no character, or not a complete one, to this
CONTEXT = 6  # how many last tokens of the prompt the first window begins with; more if these begin within a character
WINDOW = 16  # a longer window drops the tokens before the last border
PATIENCE = 16  # after this many tokens without a complete character, bytes count as invalid, not as incomplete


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
        self._released = len(text)  # how many characters of the window's text are released
        self._border = len(self._window)  # how many tokens of the window are before the last border between characters

    def push(self, token: int) -> str:
        """Add `token` and return the text that it completes, or "" while a character is incomplete."""
        self._window.append(token)
        text = self._decode(self._window)
        open_bytes = len(text) - len(text.rstrip(INCOMPLETE))
        if open_bytes and len(self._window) - self._border <= PATIENCE:
            return ""
        # Of the bytes at the end that are no character, only the last three can still become one.
        released = self._release(text, len(text) - min(open_bytes, 3))
        if not open_bytes:
            if len(self._window) > WINDOW:
                self._window = self._window[self._border :]
                self._released = len(self._decode(self._window))
            self._border = len(self._window)
        return released

    def flush(self) -> str:
        """Return the text that is held back, because no more tokens follow."""
        text = self._decode(self._window)
        return self._release(text, len(text))

    def _release(self, text: str, end: int) -> str:
        released = text[self._released : end]
        self._released = max(self._released, end)
        return released


class ByteDetokenizer:
    """The text of a constrained reply: the bytes of its tokens, whatever is before them, as the constraint reads them.

    `bytes_of` gives the bytes of a token.
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Add `token` and return the text that it completes, or "" while a character is incomplete."""
        return self._decoder.decode(self._bytes_of(token))

    def flush(self) -> str:
        """Return the text that is held back, because no more tokens follow."""
        return self._decoder.decode(b"", final=True)
