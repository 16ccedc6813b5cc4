"""Refuses texts that have more tokens than the context, without tokenizing them: no token covers more than the longest.

`tokenizer` asks before it tokenizes a text. The bound is computed at the first text that might exceed it. Where a
tokenizer may drop characters, or make one token of any number of them, there is no bound, and nothing is refused here.
Such a text is tokenized, which may take minutes, in a thread of its own. This module never counts tokens.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, NamedTuple

import msgspec

from ipc.errors import ContextOverflow

# Pre-tokenizers by what they drop of a text. Others may drop anything.
_KEEPS_ALL = {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength"}
_DROPS_SPACE = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
_COMPOSES = {"NFC", "NFD", "NFKC", "NFKD"}
_COMPOSED = 4  # characters that normalization may compose to one: the longest canonical decomposition
# Characters beyond ASCII that count as whitespace, for Unicode or for Python.
_SPACES = (
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_ASCII_SPACES = b"\t\n\v\f\r\x1c\x1d\x1e\x1f "

Unit = Literal["bytes", "characters"]


class LengthBound(NamedTuple):
    """A token covers at most `longest` of a text's `unit`, besides any number of the bytes in `dropped`.

    With `drops_space`, it may also cover any amount of whitespace beyond ASCII, whose bytes are in `dropped` already.
    """

    longest: int
    unit: Unit = "bytes"
    dropped: bytes = b""
    drops_space: bool = False

    def tokens(self, text: str) -> int:
        """The least number of tokens that `text` has."""
        size = len(text) if text.isascii() or self.unit == "characters" else len(text.encode())
        if self.dropped:
            plain = text.encode()
            size -= len(plain) - len(plain.translate(None, self.dropped))
            if self.drops_space and not text.isascii():
                width = {space: 1 if self.unit == "characters" else len(space.encode()) for space in _SPACES}
                size -= sum(text.count(space) * width[space] for space in _SPACES)
        return -(-max(size, 0) // self.longest)


class TextLimit:
    """The limit for texts of a model with `context` tokens (None: any) and the tokenizer `hf` of transformers."""

    def __init__(self, hf: Any, context: int | None) -> None:
        self._hf = hf
        self._context = context

    def check(self, text: str) -> None:
        """Raise `ContextOverflow` if `text` certainly has more tokens than the context."""
        if self._context is None or len(text) <= self._context or self._bound is None:
            return
        least = self._bound.tokens(text)
        if least > self._context:
            raise ContextOverflow(
                f"a text of {len(text)} characters has at least {least} tokens and exceeds the model's context of "
                f"{self._context} tokens; shorten it",
                prompt_tokens=least,
                max_tokens=0,
                context=self._context,
            )

    @cached_property
    def _bound(self) -> LengthBound | None:
        return bound_of(getattr(self._hf, "backend_tokenizer", None))


def bound_of(backend: Any) -> LengthBound | None:
    """The bound for `backend`, a tokenizer of the library `tokenizers`; None if it has none, or is of another kind."""
    try:
        parts = [_state(backend.normalizer), _state(backend.pre_tokenizer)]
        model = backend.model
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
    except Exception:  # no fast tokenizer, or one with parts in Python
        return None
    normalizers, pre_tokenizers = map(_flat, parts)
    drops_space = any(token.lstrip or token.rstrip for token in added.values())
    byte_level = any(part["type"] == "ByteLevel" for part in normalizers + pre_tokenizers)
    dropped = _unknown_bytes(model, vocabulary, byte_level)
    if dropped is None:
        return None
    factor = 1
    unit: Unit = "bytes"
    for part in normalizers:
        kind = part["type"]
        if kind in _COMPOSES:
            factor, unit = factor * _COMPOSED, "characters"
        elif kind == "Lowercase":
            unit = "characters"
        elif kind in ("ByteLevel", "Prepend") or (kind == "Replace" and _replaces_one(part)):
            continue
        elif kind == "Strip" or (kind == "Replace" and _replaces_space(part)):
            drops_space = True
        else:
            return None
    for part in pre_tokenizers:
        kind = part["type"]
        if kind in _DROPS_SPACE:
            drops_space = True
        elif kind not in _KEEPS_ALL and not (kind in ("Split", "Punctuation") and part.get("behavior") != "Removed"):
            return None
    names = {token.content for token in added.values()}
    # A character of a byte-level token stands for one byte.
    longest = max(1, *(len(text) if byte_level and text not in names else len(text.encode()) for text in vocabulary))
    if unit == "characters":
        # Only characters of ASCII can be dropped as a whole: of all others, the last byte is known.
        if any(0x80 <= byte < 0xC0 for byte in dropped):
            return None
        dropped = bytes(byte for byte in dropped if byte < 0x80)
    if drops_space:
        dropped = bytes({*dropped, *_ASCII_SPACES})
    return LengthBound(factor * longest, unit, dropped, drops_space)


def _state(part: Any) -> dict[str, Any] | None:
    if part is None:
        return None
    state: dict[str, Any] = msgspec.json.decode(part.__getstate__())
    return state


def _flat(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The parts of a sequence of parts, or of a single one."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [each for inner in part.get("normalizers") or part.get("pretokenizers") or [] for each in _flat(inner)]
    return [part]


def _unknown_bytes(model: Any, vocabulary: dict[str, int], byte_level: bool) -> bytes | None:
    """The bytes that the model drops, or makes one unknown token of, because it has no token for them. None if others.

    A byte-level model may lack those of control characters.
    """
    kind = type(model).__name__
    if kind == "BPE" and byte_level:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        return bytes(byte for byte, letter in bytes_to_unicode().items() if letter not in vocabulary)
    if kind == "BPE" and model.byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        return b""
    return None


def _replaces_one(part: dict[str, Any]) -> bool:
    """Whether a `Replace` replaces single characters, none of them by nothing."""
    return len(part["pattern"].get("String", "")) == 1 and bool(part["content"])


def _replaces_space(part: dict[str, Any]) -> bool:
    """Whether a `Replace` changes nothing but spaces."""
    pattern = part["pattern"]
    found = pattern.get("String") or pattern.get("Regex", "").removesuffix("+").removesuffix("{2,}")
    return bool(found) and set(found.replace(r"\s", " ")) <= {" ", "\t", "\n"}
