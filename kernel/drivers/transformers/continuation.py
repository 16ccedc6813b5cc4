"""The ids of a text that continues another one, for scores.

A continuation begins where the prompt ends, as a reply does: the tokens of the prompt are those of the prompt alone, no
token spans the seam, and the texts meet without a space. Most sentencepiece tokenizers put a space before each text, so
they would read "ing" after "walk" as "walk ing"; this module encodes without it. `Tokenizer` uses it. It never changes
the tokenizer.
"""

from __future__ import annotations

import json
import threading
from typing import Any

from kernel.drivers.transformers import tokenizer_json

ANCHORS = "qxzjk7"  # letters after which a text may continue a word


class Continuations:
    """Encodes continuations with the tokens of `hf`, a tokenizer of transformers. Several threads may use it."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        self._backend: Any = None
        self._prefix = ""  # how tokens begin that continue a word, for tokenizers that mark these tokens
        self._examined = False
        self._examining = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens around them."""
        ids: list[int]
        if self.backend is not None:
            (encoded,) = self.backend.encode_batch([text], add_special_tokens=False)  # `encode` holds the interpreter
            ids = encoded.ids
        elif self._prefix and text[:1].isalnum():
            ids = self._within_word(text)
        else:
            ids = self._plain(text)
        return ids

    @property
    def backend(self) -> Any:
        """A tokenizer of the `tokenizers` library that adds no space, if that of `hf` adds one; else None."""
        if not self._examined:
            with self._examining:
                if not self._examined:
                    self._examine()
                    self._examined = True  # only now: another thread must not encode before
        return self._backend

    def _examine(self) -> None:
        """Find out how the tokenizer treats the beginning of a text: once, because its description may be long."""
        if getattr(self._hf, "backend_tokenizer", None) is None:
            return  # a tokenizer in Python, which cannot be changed
        described = tokenizer_json.description(self._hf)
        if tokenizer_json.adds_prefix(described):
            from tokenizers import Tokenizer

            self._backend = Tokenizer.from_str(json.dumps(tokenizer_json.without_prefix(described)))
        elif described["model"]["type"] == "WordPiece":
            self._prefix = described["model"]["continuing_subword_prefix"]

    def _within_word(self, text: str) -> list[int]:
        """The ids of `text` as the end of a longer word: after a letter that is a token of its own."""
        for letter in ANCHORS:
            ids = self._plain(letter + text)
            if ids[:1] == self._plain(letter) and ids[1:]:
                (token,) = self._hf.convert_ids_to_tokens(ids[1:2])
                if token.startswith(self._prefix):
                    return ids[1:]
        return self._plain(text)

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._hf(text, add_special_tokens=False)["input_ids"]
        return ids
