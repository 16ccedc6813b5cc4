"""Which tokens of a tokenizer control the model, which of them a text names, and how to write the names as plain text.

`chat_template` uses this for contents, `tokenizer` for texts that are not prompts. The copies of the tokenizer that it
needs (`plain_tokenizer`) are made at the first text that names a control token. It never drops a character of a text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ipc.errors import InvalidPrompt
from kernel.drivers.transformers.plain_tokenizer import PlainTokenizer, plain_copies

# Added tokens of Gemma and others that are tokens of ordinary HTML.
_HTML = frozenset(
    re.findall(
        r"\S+",
        "a b blockquote body br caption center code dd div dl dt em h1 h2 h3 h4 h5 h6 head hr html i img li ol p pre s "
        "script small span strike strong style sub sup table tbody td tfoot th thead title tr tt u ul",
    )
)
_OPENING, _CLOSING = "<[{|", ">]}|"


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
        self._fast = bool(getattr(hf, "is_fast", False))  # it is of the `tokenizers` library
        self._normalizes = self._fast and hf.backend_tokenizer.normalizer is not None
        self._copies = plain_copies(hf.backend_tokenizer, self._texts) if self._fast else []
        self._other_copies: list[Callable[[], PlainTokenizer]] | None = None  # of the `backend` of `encode_plain`

    def may_be_in(self, text: str) -> bool:
        """Whether `text` could be all or a part of a control token, alone or beside other text. No is certain."""
        if any(edge in text for edge in self._edges):
            return True
        if self._normalizes and not text.isascii():
            return True  # some other character may become one of a control token, as a wide "<" may
        middle = text.strip().lower()
        return 0 < len(middle) < self._longest and middle in self._all

    def of_parts(self, text: str) -> list[str]:
        """The control tokens that `text` may make together with other text before or after it."""
        part = unicodedata.normalize("NFKC", text).strip().lower()
        return [name for name in self._texts.values() if part and _may_be_part(part, name.strip().lower())]

    def encode(self, text: str, *, whole: bool = False) -> tuple[list[int], list[Match]]:
        """The ids of `text` as the tokenizer makes them, and the control tokens that the text names.

        `whole`: the text is a whole one, which gets the tokens that begin and end a text. They are no matches.
        """
        encoded = self._hf(text, add_special_tokens=whole)
        ids: list[int] = encoded["input_ids"]
        if not self._fast:
            return ids, self._named_in(text)
        matches = []
        for position, identity in enumerate(ids):
            if identity in self._texts and (span := encoded.token_to_chars(position)) is not None:
                named = text[span.start : span.end].strip()
                if named and (self._texts[identity] != self._unknown or named == self._unknown):
                    matches.append(Match(identity, span.start, span.end))
        return ids, matches

    def encode_plain(
        self, text: str, own: Sequence[Match] = (), *, whole: bool = False, backend: Any = None
    ) -> list[int]:
        """The ids of `text`, where only `own` are control tokens; other names of control tokens are plain text.

        `own` is in the order of the text; `whole` as in `encode`. `backend`: a tokenizer with the same ids that takes
        the place of the own one, always the same object. Raises `InvalidPrompt` if the tokenizer cannot do it.
        """
        if backend is not None and self._other_copies is None:
            self._other_copies = plain_copies(backend, self._texts)
        copies = self._copies if backend is None else self._other_copies or []
        wanted = self._known(match.id for match in own)
        made: list[int] = []
        for make in copies:
            plain = make()
            ids, text_ids = plain.encode(_with_aliases(text, own, plain.aliases), whole)
            made = self._known(text_ids)
            if made == wanted:
                return ids
        raise self.refusal(self._texts[identity] for identity in made or self._texts)

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


def _is_control(text: str, special: bool) -> bool:
    name = text.strip(" \t\n▁")
    if special or not name:
        return bool(name)
    bracketed = name[0] in _OPENING and name[-1] in _CLOSING and any(map(str.isalpha, name))
    return bracketed and name.strip("</>") not in _HTML


def _may_be_part(part: str, name: str) -> bool:
    return part in name or any(part.startswith(name[at:]) or part.endswith(name[:at]) for at in range(1, len(name)))


def _with_aliases(text: str, own: Sequence[Match], aliases: dict[int, str]) -> str:
    """`text` with an alias in the place of each of the control tokens `own`."""
    pieces: list[str] = []
    at = 0
    for identity, start, end in own:
        # A token that takes in the space beside it covers that, too. Its alias takes it in again.
        named = text[start:end]
        pieces += text[at : end - len(named.lstrip())], aliases[identity]
        at = start + len(named.rstrip())
    return "".join([*pieces, text[at:]])
