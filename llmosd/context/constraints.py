"""What a reply has to be, as agents say it: the constraint for the driver, and the typed value from the text.

Used by `chat` and `generate`. It asks no model and checks nothing that the kernel checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ipc.errors import InvalidConstraint, InvalidReply
from ipc.syscalls import Constraint

Decode = Callable[[str], Any]

KINDS = ("schema", "choices", "regex", "grammar")


def take_constraint(options: dict[str, Any]) -> tuple[Constraint | None, Decode]:
    """Take `schema`, `choices`, `regex` and `grammar` out of `options`: what they ask for, and the reader of a reply.

    Raises `InvalidConstraint`.
    """
    given = {kind: value for kind in KINDS if (value := options.pop(kind, None)) is not None}
    if not given:
        return None, str
    if len(given) > 1:
        raise InvalidConstraint(f"{' and '.join(given)} contradict each other; give one of them")
    ((kind, value),) = given.items()
    if kind == "schema":
        return _schema(value)
    if kind == "choices":
        if isinstance(value, str) or not all(isinstance(choice, str) for choice in value):
            raise InvalidConstraint(f"choices are a list of texts, which {value!r} is not")
        return Constraint("choices", msgspec.json.encode(list(value)).decode()), str
    if not isinstance(value, str):
        raise InvalidConstraint(f"a {kind} is a text, which {value!r} is not")
    return Constraint("regex" if kind == "regex" else "grammar", value), str


def _schema(schema: Any) -> tuple[Constraint, Decode]:
    """The constraint of a JSON schema, as a dict or as text, or of a type that msgspec can describe by one."""
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except msgspec.DecodeError as error:
            raise InvalidConstraint(f"schema is not JSON: {error}") from None
    if isinstance(schema, dict):
        kind: Any = Any
    else:
        kind = schema
        try:
            schema = _closed(msgspec.json.schema(kind))
        except (TypeError, ValueError, NameError) as error:
            raise InvalidConstraint(f"schema {kind!r} is no type that JSON can carry: {error}") from None
    try:
        text = msgspec.json.encode(schema).decode()
    except (TypeError, ValueError) as error:
        raise InvalidConstraint(f"schema is not JSON: {error}") from None
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)

    def decode(text: str) -> Any:
        try:
            return decoder.decode(text)
        except msgspec.DecodeError as error:
            raise InvalidReply(f"the reply does not fit the schema: {error}", text=text) from None

    return Constraint("schema", text), decode


def _closed(schema: Any) -> Any:
    """`schema` without room for properties that it does not name: they would be written, and dropped."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: {name: _closed(one) for name, one in part.items()} if key in ("properties", "$defs") else _closed(part)
        for key, part in schema.items()
    }
    return {"additionalProperties": False} | closed if "properties" in schema else closed
