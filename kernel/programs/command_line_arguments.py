"""Parses an argument that was given as a text, as on a command line, by the type of its parameter.

Used by `kernel.programs.arguments` for calls with `lenient`. The rules, of which the first that fits holds: a type that
allows texts takes the text as is, and one that allows bytes its UTF-8 bytes. For `Any`, a text that is JSON stands for
that value, and any other text for itself. All other types take JSON, or the usual text of a number, a date, a UUID or
an enumeration. This module never reads a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect as nodes

from kernel.programs.accepted_form import BYTES


def text_parser(kind: Any, node: nodes.Type) -> Callable[[str | bytes], Any]:
    """The parser of texts for parameters of type `kind`, which is `node` in the terms of `msgspec.inspect`.

    Bytes stand for a text that is not UTF-8. The parser raises `msgspec.DecodeError` and `RecursionError`.
    """
    members = node.types if isinstance(node, nodes.UnionType) else (node,)

    def allows(*classes: type[nodes.Type]) -> bool:
        return any(isinstance(member, classes) for member in members)

    if allows(*BYTES):
        return lambda text: msgspec.convert(text.encode() if isinstance(text, str) else text, kind)
    if allows(nodes.StrType):
        return lambda text: msgspec.convert(text, kind)
    if allows(nodes.AnyType) or kind is object:
        return _json_or_text
    decoder = msgspec.json.Decoder(kind)

    def parse(text: str | bytes) -> Any:
        if isinstance(text, bytes):
            return msgspec.convert(text, kind)
        try:
            return decoder.decode(text)
        except msgspec.DecodeError as error:
            try:
                return msgspec.convert(text, kind, strict=False)
            except msgspec.ValidationError as second:
                raise (error if looks_like_json(text) else second) from None

    return parse


def looks_like_json(text: str) -> bool:
    """Whether a text begins like an array, an object or a string of JSON."""
    return text.lstrip()[:1] in {"[", "{", '"'}


def _json_or_text(text: str | bytes) -> Any:
    if isinstance(text, bytes):
        raise msgspec.ValidationError("only a parameter of type bytes takes bytes that are not UTF-8")
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
