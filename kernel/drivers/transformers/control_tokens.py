"""Which tokens of a tokenizer control the model, and a tokenizer that writes their names as plain text.

`chat_template` uses both for contents, `tokenizer` for texts that are not prompts. The plain tokenizer is made at the
first text that names a control token. No id is ever a control token's because of a text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from ipc.errors import InvalidPrompt
from kernel.drivers.transformers.hidden_text import PRIVATE

# Added tokens of Gemma and others that are tokens of ordinary HTML.
_HTML = frozenset(
    re.findall(
        r"\S+",
        "a b blockquote body br caption center code dd div dl dt em h1 h2 h3 h4 h5 h6 head hr html i img li ol p pre s "
        "script small span strike strong style sub sup table tbody td tfoot th thead title tr tt u ul",
    )
)
_OPENING, _CLOSING = "<[{|", ">]}|"
_ALIAS = 8  # characters


class Match(NamedTuple):
    """A control token in an encoded text: its id, and which characters it covers."""

    id: int
    start: int
    end: int


class ControlTokens:
    """The control tokens of `hf`, a tokenizer of transformers.

    An added token is a control token if it is special, or if it is in brackets or bars (`<think>`, `[INST]`) and no tag
    of HTML. Other added tokens are ordinary words or spaces. `name` is the model's name for error messages.
    """

    def __init__(self, hf: Any, name: str) -> None:
        self._hf = hf
        self._name = name
        added: dict[int, Any] = getattr(hf, "added_tokens_decoder", {})
        controls = {identity: token for identity, token in added.items() if _is_control(token.content, token.special)}
        self._texts = {identity: token.content for identity, token in controls.items()}
        self._unknown = getattr(hf, "unk_token", None)
        self._longest = max(map(len, self._texts.values()), default=0)
        self._all = "\0".join(self._texts.values()).lower()
        edges = {letter for text in self._texts.values() for letter in (text[0], text[-1])}
        self._edges = edges | {other for letter in edges for other in letter.lower() + letter.upper()}
        self._normalizes = getattr(hf, "is_fast", False) and hf.backend_tokenizer.normalizer is not None

    def may_be_in(self, text: str) -> bool:
        """Whether `text` could be all or a part of a control token, alone or beside other text. No is certain."""
        if any(edge in text for edge in self._edges):
            return True
        if self._normalizes and not text.isascii():
            return True  # some other character may become one of a control token, as a wide "<" may
        middle = text.strip().lower()
        return 0 < len(middle) < self._longest and middle in self._all

    def encode(self, text: str, *, whole: bool = False) -> tuple[list[int], list[Match]]:
        """The ids of `text` as the tokenizer makes them, and the control tokens that the text names.

        `whole`: the text is a whole one, which gets the tokens that begin and end a text. They are no matches.
        """
        encoded = self._hf(text, add_special_tokens=whole)
        ids: list[int] = encoded["input_ids"]
        if not getattr(self._hf, "is_fast", False):
            return ids, self._named_in(text)
        matches = []
        for position, identity in enumerate(ids):
            if identity in self._texts and (span := encoded.token_to_chars(position)) is not None:
                named = text[span.start : span.end].strip()
                if named and (self._texts[identity] != self._unknown or named == self._unknown):
                    matches.append(Match(identity, span.start, span.end))
        return ids, matches

    def encode_plain(self, text: str, own: Sequence[Match] = (), *, whole: bool = False) -> list[int]:
        """The ids of `text`, where only `own` are control tokens; other names of control tokens are plain text.

        `own` is in the order of the text; `whole` as in `encode`. Raises `InvalidPrompt` if the tokenizer cannot do it.
        """
        plain, aliases = self._plain
        pieces: list[str] = []
        at = 0
        for identity, start, end in own:
            # A token that takes in the space beside it covers that, too. Its alias takes it in again.
            named = text[start:end]
            pieces += text[at : end - len(named.lstrip())], aliases[identity]
            at = start + len(named.rstrip())
        encoded = plain.encode("".join([*pieces, text[at:]]), add_special_tokens=whole)
        ids: list[int] = encoded.ids
        # The mask has a 1 for tokens that begin or end a text.
        in_text = (identity for identity, added in zip(ids, encoded.special_tokens_mask, strict=True) if not added)
        made = self._known(in_text)
        if made != self._known(match.id for match in own):
            raise self.refusal(self._texts[identity] for identity in made)
        return ids

    def refusal(self, names: Iterable[str]) -> InvalidPrompt:
        """The error of a text that names control tokens which this tokenizer cannot write as plain text."""
        listed = ", ".join(sorted(set(names))[:5])
        return InvalidPrompt(
            f"the text names control tokens of {self._name} ({listed}), and its tokenizer cannot write them as plain "
            "text; remove or change these names in the text"
        )

    def _known(self, ids: Iterable[int]) -> list[int]:
        # Text that the tokenizer does not know may become the unknown token.
        return [identity for identity in ids if self._texts.get(identity, self._unknown) != self._unknown]

    def _named_in(self, text: str) -> list[Match]:
        ids = {name: identity for identity, name in self._texts.items()}
        names = re.compile("|".join(map(re.escape, sorted(ids, key=len, reverse=True))) or "(?!)")
        return [Match(ids[found.group()], found.start(), found.end()) for found in names.finditer(text)]

    @cached_property
    def _plain(self) -> tuple[Any, dict[int, str]]:
        """A copy of the tokenizer in which each control token has another name, its alias, and the aliases.

        They are random, so no text contains one. So the copy finds the control tokens that are meant, in one pass, and
        the text around them becomes the same tokens as ever.
        """
        if not getattr(self._hf, "is_fast", False):
            raise self.refusal(self._texts.values())
        from tokenizers import Tokenizer

        aliases = {identity: _random_text() for identity in self._texts}
        renamed = {self._texts[identity]: alias for identity, alias in aliases.items()}
        state = msgspec.json.decode(self._hf.backend_tokenizer.to_str())
        state |= {"truncation": None, "padding": None}
        for token in state["added_tokens"]:
            token["content"] = aliases.get(token["id"], token["content"])
        _rename(state["model"], renamed)
        plain = Tokenizer.from_str(msgspec.json.encode(state).decode())
        changed = [identity for identity, alias in aliases.items() if plain.token_to_id(alias) != identity]
        if changed:
            raise self.refusal(self._texts[identity] for identity in changed)
        return plain, aliases


def _is_control(text: str, special: bool) -> bool:
    name = text.strip(" \t\n▁")
    if special or not name:
        return bool(name)
    bracketed = name[0] in _OPENING and name[-1] in _CLOSING and any(map(str.isalpha, name))
    return bracketed and name.strip("</>") not in _HTML


def _random_text() -> str:
    return "".join(chr(secrets.choice(PRIVATE)) for _ in range(_ALIAS))


def _rename(model: dict[str, Any], renamed: dict[str, str]) -> None:
    """Give the tokens of `model`, the tokenizer's, their new names, so that no text leads to them.

    A Unigram or WordLevel model finds each token of its vocabulary in a text, not only those that are added to it.
    """
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed.get(text, text): identity for text, identity in vocabulary.items()}
    else:
        model["vocab"] = [[renamed.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") is not None:
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [
            [first, second] for first, second in pairs if not renamed.keys() & {first, second, first + second}
        ]
