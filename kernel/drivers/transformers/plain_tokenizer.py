"""Copies of a tokenizer in which control tokens have random names, so that no text contains one.

`control_tokens` gives these names to the control tokens that it means, and encodes the text in one pass. All other text
becomes the same tokens as ever. A copy never changes the tokenizer that it is made of.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, cast

import msgspec

from kernel.drivers.transformers.hidden_text import PRIVATE

_LETTERS = 8  # of a random name


class PlainTokenizer(NamedTuple):
    """A copy, the `aliases` of control tokens by their ids, and the ids of tokens that have another id in the copy."""

    copy: Any
    aliases: dict[int, str]
    changed: dict[int, int]

    def encode(self, text: str, whole: bool) -> tuple[list[int], list[int]]:
        """The ids of `text`, and those that the text itself has. `whole`: add the tokens that begin and end a text."""
        (encoded,) = self.copy.encode_batch([text], add_special_tokens=whole)  # `encode` would hold the interpreter
        ids, text_ids = [], []
        for identity, added in zip(encoded.ids, encoded.special_tokens_mask, strict=True):
            ids.append(identity if added else self.changed.get(identity, identity))
            if not added:
                text_ids.append(ids[-1])
        return ids, text_ids


def plain_copies(backend: Any, controls: dict[int, str]) -> list[Callable[[], PlainTokenizer]]:
    """How to make copies of `backend`, of the `tokenizers` library. `controls`: the texts of control tokens by id.

    A copy is made at the first call. The first one is made in milliseconds, and is usually right; the caller checks
    whether a text still leads to a control token, and then takes the next one.
    """
    from tokenizers.models import BPE

    ways = (_shared, _renamed) if isinstance(backend.model, BPE) else (_renamed,)
    return [cache(partial(way, backend, controls)) for way in ways]


def _shared(backend: Any, controls: dict[int, str]) -> PlainTokenizer:
    """A copy with the same vocabulary in memory, for models that cannot make a control token by their merges."""
    from tokenizers import AddedToken, Tokenizer

    copy = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(backend, part)) is not None:
            setattr(copy, part, value)
    aliases, changed = {identity: _random_text() for identity in controls}, {}
    for identity, token in sorted(backend.get_added_tokens_decoder().items()):
        name = aliases.get(identity, token.content)
        flags = {flag: getattr(token, flag) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        copy.add_tokens([AddedToken(name, **flags)])
        made = cast("int", copy.token_to_id(name))
        if identity in aliases and backend.model.id_to_token(made) is not None:
            # A vocabulary with gaps in its ids: the new token has the id of another one.
            return _renamed(backend, controls)
        changed[made] = identity
    return PlainTokenizer(copy, aliases, changed)


def _renamed(backend: Any, controls: dict[int, str]) -> PlainTokenizer:
    """A copy whose vocabulary, too, has the random names.

    A Unigram or WordLevel model finds each token of its vocabulary in a text, not only those that are added to it.
    """
    from tokenizers import Tokenizer

    aliases = {identity: _random_text() for identity in controls}
    renamed = {controls[identity]: alias for identity, alias in aliases.items()}
    state = msgspec.json.decode(backend.to_str())
    state |= {"truncation": None, "padding": None}
    for token in state["added_tokens"]:
        token["content"] = aliases.get(token["id"], token["content"])
    model = state["model"]
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
    copy = Tokenizer.from_str(msgspec.json.encode(state).decode())
    changed = {cast("int", copy.token_to_id(alias)): identity for identity, alias in aliases.items()}
    return PlainTokenizer(copy, aliases, changed)


def _random_text() -> str:
    return "".join(chr(secrets.choice(PRIVATE)) for _ in range(_LETTERS))
