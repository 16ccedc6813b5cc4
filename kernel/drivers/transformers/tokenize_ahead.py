"""Tokenizes the texts in the kernel's messages, on the thread that reads the link, while a step runs on another.

The link passes each message through `tokenized` and puts the result into the engine's inbox, in order. A long prompt
takes milliseconds to tokenize, and no generation should wait for that. This module never stores a message.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ipc.errors import InvalidPrompt
from kernel.drivers.protocol import Admit, EmbedQuery, ScoreQuery
from kernel.drivers.transformers.sequence import TextCodec


class Tokenized(NamedTuple):
    """A message with the ids of its texts, or with the `error` that ends its call.

    The texts are the prompt of an `Admit`, the prompt and continuations of a `ScoreQuery`, or the texts of an
    `EmbedQuery`.
    """

    message: Admit | ScoreQuery | EmbedQuery
    ids: list[list[int]]
    error: Exception | None = None


def tokenized(codec: TextCodec, message: Any) -> Any:
    """`message` itself, or `Tokenized` if it has texts. Never raises: an error goes into `Tokenized.error`."""
    if not isinstance(message, Admit | ScoreQuery | EmbedQuery):
        return message
    try:
        return Tokenized(message, _ids(codec, message))
    except Exception as error:
        return Tokenized(message, [], error)


def _ids(codec: TextCodec, message: Admit | ScoreQuery | EmbedQuery) -> list[list[int]]:
    match message:
        case Admit():
            return [codec.encode(message.prompt) if message.prompt_ids is None else message.prompt_ids]
        case ScoreQuery():
            ids = [codec.encode(message.prompt), *map(codec.encode_more, message.continuations)]
            if len(ids) == 1 or not all(ids):
                raise InvalidPrompt("score needs one or more continuations, none of them empty")
            return ids
        case EmbedQuery():
            if not message.texts:
                raise InvalidPrompt("embed needs one or more texts")
            return list(map(codec.encode_document, message.texts))
