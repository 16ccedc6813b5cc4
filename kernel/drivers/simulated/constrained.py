"""Replies of the simulated device to constraints: the first of the choices, or the smallest instance of a JSON schema.

Called when a sequence is admitted. It never guesses: it refuses a regex, a grammar, and a schema with unsupported keys.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipc.errors import InvalidConstraint
from ipc.syscalls import Constraint

# For each JSON type the schema keys that are supported besides those under None, which every type may have.
SUPPORTED = {
    None: {"type", "title", "description", "default", "$defs", "examples", "$schema", "$id", "$comment"},
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum"},
    "number": {"minimum", "maximum"},
    "boolean": set(),
    "null": set(),
}


def minimal_reply(constraint: Constraint) -> str:
    """A text that fits `constraint`. Raises `InvalidConstraint` if the constraint is malformed or not supported."""
    try:
        if constraint.kind == "choices":
            return msgspec.json.decode(constraint.value, type=list[str])[0]
        if constraint.kind == "schema":
            schema = msgspec.json.decode(constraint.value, type=dict[str, Any])
            return msgspec.json.encode(_instance(schema, schema)).decode()
    except (msgspec.DecodeError, IndexError, RecursionError) as error:
        raise InvalidConstraint(f"invalid {constraint.kind}: {error}") from None
    raise InvalidConstraint(f"the simulated device cannot follow a {constraint.kind}; use choices or a JSON schema")


def _instance(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return _instance(_resolved(schema["$ref"], root), root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return _instance(schema[several][0], root)
    kind = schema.get("type", "null")
    if isinstance(kind, list):
        kind = kind[0]
    if kind not in SUPPORTED:
        raise InvalidConstraint(f"the simulated device does not support the JSON type {kind!r}")
    unsupported = schema.keys() - SUPPORTED[None] - SUPPORTED[kind]
    if unsupported:
        raise InvalidConstraint(f"the simulated device does not support {sorted(unsupported)} in a schema")
    return _of_type(kind, schema, root)


def _of_type(kind: str, schema: dict[str, Any], root: dict[str, Any]) -> Any:
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _instance(properties.get(name, {}), root) for name in schema.get("required", ())}
    if kind == "array":
        return [_instance(schema.get("items") or {}, root) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return "x" * schema.get("minLength", 0)
    if kind in ("integer", "number"):
        return max(schema.get("minimum", 0), 0) if schema.get("maximum", 0) >= 0 else schema["maximum"]
    return False if kind == "boolean" else None


def _resolved(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    """The part of `root` that `reference` names, such as "#/$defs/Point"."""
    part: Any = root
    for name in reference.removeprefix("#/").split("/"):
        if not isinstance(part, dict) or name not in part:
            raise InvalidConstraint(f"the schema refers to {reference}, but has no such part")
        part = part[name]
    return part  # type: ignore[no-any-return]
