"""Turns the options `schema`, `choices`, `regex` and `grammar` into a constraint, and the reply into a typed value.

Used by `chat` and `generate`. It never calls a model, and leaves all checks of the constraint itself to the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ipc.codec import UNDECODABLE, reason_of
from ipc.errors import InvalidConstraint, InvalidReply
from ipc.foreign import shown
from ipc.syscalls import Constraint

Decode = Callable[[str], Any]

KINDS = ("schema", "choices", "regex", "grammar")


def take_constraint(options: dict[str, Any]) -> tuple[Constraint | None, Decode]:
    """Remove `schema`, `choices`, `regex` and `grammar` from `options`.

    Returns the constraint that they describe, and a function that decodes a reply. Raises `InvalidConstraint`.
    """
    given = {kind: value for kind in KINDS if (value := options.pop(kind, None)) is not None}
    if not given:
        return None, str
    if len(given) > 1:
        raise InvalidConstraint(f"{' and '.join(given)} contradict each other; use only one of them")
    ((kind, value),) = given.items()
    if kind == "schema":
        return _schema(value)
    if kind == "choices":
        try:
            choices = [*value] if not isinstance(value, str) else [None]
            text = msgspec.json.encode(msgspec.convert(choices, list[str])).decode()
        except (TypeError, ValueError):  # also of half a surrogate
            raise InvalidConstraint(f"choices must be a list of texts, not {shown(value)}") from None
        return Constraint("choices", text), str
    if not isinstance(value, str):
        raise InvalidConstraint(f"{kind} must be a text, not {shown(value)}")
    return Constraint("regex" if kind == "regex" else "grammar", value), str


def _schema(schema: Any) -> tuple[Constraint, Decode]:
    """The constraint and the decoder for a JSON schema (a dict or a text), or for a type that msgspec can describe."""
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(str.__str__(schema))  # of a subclass, too
        except (*UNDECODABLE, UnicodeError) as error:
            raise InvalidConstraint(f"schema is not JSON: {reason_of(error)}") from None
    if isinstance(schema, dict):
        kind: Any = Any
    else:
        kind = schema
        try:
            schema = _without_extra_properties(msgspec.json.schema(kind))
        except (TypeError, ValueError, NameError, RecursionError) as error:
            raise InvalidConstraint(f"schema {shown(kind)} is not a type that JSON can carry: {error}") from None
    try:
        text = msgspec.json.encode(schema).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidConstraint(f"schema is not JSON: {reason_of(error)}") from None
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)

    def decode(text: str) -> Any:
        try:
            return decoder.decode(text)
        except UNDECODABLE as error:
            raise InvalidReply(f"the reply does not fit the schema: {error}", text=text) from None

    return Constraint("schema", text), decode


def _without_extra_properties(schema: Any) -> Any:
    """`schema`, changed so that objects have only the properties that it names: the decoder would drop all others."""
    if isinstance(schema, list):
        return [_without_extra_properties(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {}
    for key, part in schema.items():
        if key in ("properties", "$defs"):
            closed[key] = {name: _without_extra_properties(one) for name, one in part.items()}
        else:
            closed[key] = _without_extra_properties(part)
    return {"additionalProperties": False} | closed if "properties" in schema else closed
