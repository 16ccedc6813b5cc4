"""Describes in words which texts and values a parameter of some type accepts, with an example.

Used by the errors about arguments, and by the description of a program. It never checks or converts a value. A type is
given as a node of `msgspec.inspect`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import inspect as nodes

DEEPEST = 4  # types inside types that are described; a recursive type has no end
MOST_FIELDS = 8  # of an object
MOST_VALUES = 12  # of a Literal or an Enum

BYTES = (nodes.BytesType, nodes.ByteArrayType, nodes.MemoryViewType)
TEXTS = (nodes.StrType, *BYTES)  # types that take any text
OBJECTS = (nodes.TypedDictType, nodes.NamedTupleType, nodes.DataclassType, nodes.StructType)


class Form(msgspec.Struct, frozen=True):
    """Words for one value and for several, and JSON values as examples.

    `text`: on the command line, the example stands without the quotes of JSON. `plain`: the words need no example.
    """

    one: str
    many: str
    examples: Sequence[Any] = ()
    text: bool = False
    plain: bool = False


def accepted_form(node: nodes.Type) -> str:
    """The accepted form of an argument in words, such as 'a JSON array of strings, such as ["a", "b"]'."""
    form = _form(node, 0)
    if form.plain or not form.examples:
        return form.one
    example = form.examples[0]
    return f"{form.one}, such as {example if form.text else json.dumps(example, ensure_ascii=False)}"


def _form(node: nodes.Type, depth: int) -> Form:
    if depth > DEEPEST:
        return Form("a value", "values", [None])
    for kind, describe in DESCRIPTIONS.items():
        if isinstance(node, kind):
            return describe(node, depth)
    return Form("a value", "values")


def _any(node: nodes.Type, depth: int) -> Form:
    if depth:
        return Form("any value", "any values", ["a", 1])
    return Form("JSON or any other text", "any values", ["a", 1], plain=True)


def _string(node: nodes.StrType, depth: int) -> Form:
    words = f" of {extent} characters" if (extent := _extent(node)) else ""
    if node.pattern:
        words += f" that matches {node.pattern}"
    one, many = ("a string", "strings") if depth else ("a text", "texts")
    return Form(one + words, many + words, ["a", "b"], text=True, plain=True)


def _bytes(node: nodes.Type, depth: int) -> Form:
    if depth:
        return Form("bytes in base64", "strings of bytes in base64", ["aGVsbG8="])
    return Form("a text or @FILE", "bytes", ["hello"], text=True)


def _integer(node: nodes.IntType, depth: int) -> Form:
    low = node.ge if node.ge is not None else None if node.gt is None else node.gt + 1
    high = node.le if node.le is not None else None if node.lt is None else node.lt - 1
    step = node.multiple_of or 1
    first = -(-max(1, low or 1) // step) * step if high is None or high > 0 else high // step * step
    second = first + step if high is None or first + step <= high else first
    return Form(f"a whole number{_range(node)}", f"whole numbers{_range(node)}", [first, second])


def _number(node: nodes.FloatType, depth: int) -> Form:
    low, high = (node.gt if node.ge is None else node.ge), (node.lt if node.le is None else node.le)
    if low is not None and high is not None:
        example = (low + high) / 2
    elif low is not None:
        example = max(0.5, low + 1)
    else:
        example = 0.5 if high is None else min(0.5, high - 1)
    return Form(f"a number{_range(node)}", f"numbers{_range(node)}", [example])


def _range(node: nodes.IntType | nodes.FloatType) -> str:
    """The bounds of a number, such as " from 1 to 5"."""
    low = f" above {node.gt}" if node.gt is not None else "" if node.ge is None else f" from {node.ge}"
    high = f" below {node.lt}" if node.lt is not None else "" if node.le is None else f" up to {node.le}"
    if node.ge is not None and node.le is not None:
        return f"{low} to {node.le}"
    return f"{low} and{high}" if low and high else low + high


def _extent(node: Any) -> str:
    """The bounds of a length, such as "1 or more"; "" if there are none."""
    least, most = node.min_length, node.max_length
    if most is None:
        return f"{least} or more" if least else ""
    return f"{least} to {most}" if least else f"up to {most}"


def _array(node: Any, depth: int) -> Form:
    item = _form(node.item_type, depth + 1)
    many = "items" if isinstance(node.item_type, nodes.AnyType) else item.many
    distinct = isinstance(node, nodes.SetType | nodes.FrozenSetType)
    words = " ".join(word for word in (_extent(node), "different" if distinct else "", many) if word)
    words = "" if words == "items" else f" of {words}"
    return Form(f"a JSON array{words}", f"arrays{words}", [item.examples[:2]] if item.examples else [])


def _tuple(node: nodes.TupleType, depth: int) -> Form:
    items = [_form(one, depth + 1) for one in node.item_types]
    words = _listed([item.one for item in items], "and") or "no items"
    return Form(f"a JSON array of {words}", f"arrays of {words}", [[_example(item) for item in items]])


def _mapping(node: nodes.DictType, depth: int) -> Form:
    key, value = _form(node.key_type, depth + 1), _form(node.value_type, depth + 1)
    example = [{str(_example(key)): _example(value)}]
    if isinstance(node.value_type, nodes.AnyType):
        return Form("a JSON object", "objects", example)
    return Form(f"a JSON object with values that are {value.many}", f"objects of {value.many}", example)


def _object(node: Any, depth: int) -> Form:
    """A form of a class with fields: a dataclass, a TypedDict, a NamedTuple or a Struct."""
    in_order = isinstance(node, nodes.NamedTupleType) or getattr(node, "array_like", False)
    tag = getattr(node, "tag", None)
    fields = [(field.encode_name, field.required, field.type) for field in node.fields]
    shown = [entry for entry in fields if entry[1]] or fields[:1]
    values = {name: _example(_form(kind, depth + 1)) for name, _, kind in shown[:MOST_FIELDS]}
    if tag is not None:
        values = {node.tag_field: tag} | values
    names = [name if required else f"{name} (optional)" for name, required, _ in fields]
    if len(names) > MOST_FIELDS:
        names = [*names[:MOST_FIELDS], f"{len(names) - MOST_FIELDS} more"]
    words = _listed(names, "and") or "no fields"
    if in_order:
        return Form(f"a JSON array of {words}", f"arrays of {words}", [list(values.values())])
    return Form(f"a JSON object with {words}", f"objects with {words}", [values])


def _literal(node: nodes.LiteralType, depth: int) -> Form:
    return _one_of(node.values, depth)


def _enum(node: nodes.EnumType, depth: int) -> Form:
    return _one_of([member.value for member in node.cls], depth)


def _one_of(values: Iterable[Any], depth: int) -> Form:
    values = list(values)
    shown = [value if isinstance(value, str) and not depth else json.dumps(value, default=str) for value in values]
    if len(shown) > MOST_VALUES:
        shown = [*shown[:MOST_VALUES], f"{len(shown) - MOST_VALUES} more"]
    words = _listed(shown, "or") if len(shown) > 1 else "".join(shown)
    return Form(words, f"values out of {words}", values[:1], plain=True)


def _union(node: nodes.UnionType, depth: int) -> Form:
    """The forms of all members. On the command line, a member that takes any text hides the others."""
    members = sorted(node.types, key=lambda one: (isinstance(one, nodes.NoneType), not isinstance(one, TEXTS)))
    forms = [_form(one, depth) for one in members]
    many = _listed([form.many for form in forms], "or")
    if isinstance(members[0], TEXTS) and not depth:
        others = _listed([form.one for form in forms[1:]], "or")
        return Form(f"{forms[0].one}, or with --json {others}", many, plain=True)
    first = next((form for form in forms if form.examples and not form.plain), forms[0])
    # An object below another may be an object of the same class, without an end.
    endless = depth and isinstance(members[-1], nodes.NoneType) and isinstance(members[0], OBJECTS)
    examples = [None] if endless else first.examples
    plain = all(form.plain for form in forms)
    return Form(_listed([form.one for form in forms], "or"), many, examples, text=first.text, plain=plain)


def _custom(node: nodes.CustomType, depth: int) -> Form:
    name = getattr(node.cls, "__name__", str(node.cls))
    return Form(f"a Python object of type {name}, which no text stands for", f"Python objects of type {name}")


def _example(form: Form) -> Any:
    return form.examples[0] if form.examples else None


def _listed(words: Sequence[str], last: str) -> str:
    """Words as a list in English, such as "a, b and c"."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _constant(one: str, many: str, *examples: Any, text: bool = False, plain: bool = False) -> Callable[..., Form]:
    return lambda node, depth: Form(one, many, examples, text=text, plain=plain)


DESCRIPTIONS: dict[type[nodes.Type], Callable[[Any, int], Form]] = {
    nodes.AnyType: _any,
    nodes.NoneType: _constant("null", "nulls", None, plain=True),
    nodes.BoolType: _constant("true or false", "booleans", True, False, plain=True),
    nodes.IntType: _integer,
    nodes.FloatType: _number,
    nodes.StrType: _string,
    nodes.BytesType: _bytes,
    nodes.ByteArrayType: _bytes,
    nodes.MemoryViewType: _bytes,
    nodes.DateTimeType: _constant("a date and time", "dates and times", "2024-05-31T12:00:00", text=True),
    nodes.DateType: _constant("a date", "dates", "2024-05-31", text=True),
    nodes.TimeType: _constant("a time", "times", "12:00:00", text=True),
    nodes.TimeDeltaType: _constant("a duration", "durations", "PT90S", text=True),
    nodes.UUIDType: _constant("a UUID", "UUIDs", "12345678-1234-5678-1234-567812345678", text=True),
    nodes.DecimalType: _constant("a decimal number", "decimal numbers", "9.99", text=True),
    nodes.EnumType: _enum,
    nodes.LiteralType: _literal,
    nodes.UnionType: _union,
    nodes.TupleType: _tuple,
    nodes.CollectionType: _array,
    nodes.DictType: _mapping,
    nodes.TypedDictType: _object,
    nodes.NamedTupleType: _object,
    nodes.DataclassType: _object,
    nodes.StructType: _object,
    nodes.CustomType: _custom,
}
