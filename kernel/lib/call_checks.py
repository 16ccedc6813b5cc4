"""Checks the fields of an agent's call: each must have exactly the type that the call declares, and no look-alike.

Nothing decodes the calls of agents, so a field may hold any object. A number of numpy or a `Decimal` equals an int, so
a table would find it, and would then hold a value that the journal cannot store. The gate and the replay call
`check_call`, and so do the handlers of `send`, `call`, `reply` and `receive`, for the calls that their own quick checks
do not cover. Calls from a socket need no check here: the decoder checks the same types and ranges.

The first call of a kind compiles a function from the annotations of its fields. This module never looks into values
of any type, such as the body of a message: who stores or sends such a value encodes it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from ipc.errors import InvalidCall, InvalidPrompt
from ipc.foreign import class_name, shown
from ipc.syscalls import Syscall
from kernel.lib.validation import is_encodable

LOWEST, HIGHEST = -(2**63), 2**63 - 1  # the integers of SQLite, and the signed ones of msgpack
ERRORS = {"prompt": InvalidPrompt}  # fields whose odd values have an error of their own

Check = Callable[[Syscall], None]
Take = Callable[[Any], Any]


class FieldForm(NamedTuple):
    """The form of the values that a field takes.

    `expected`: the same in words, which complete "pass ...". `fits`: whether a value of this class may be one. `take`:
    returns the plain value of a value that fits, or raises `Refused`. `common`: a Python expression that holds only
    for values `v` that need no more checks.
    """

    expected: str
    fits: Callable[[type], bool]
    take: Take
    common: str = "False"


class Refused(Exception):
    """`value` does not have the `expected` form. `path` leads from the field of the call to the value."""

    def __init__(self, value: Any, expected: str) -> None:
        super().__init__()
        self.value = value
        self.expected = expected
        self.path = ""


def check_call(call: Syscall) -> None:
    """Check the fields of `call`. A member of an enumeration of texts becomes a text. Raises `InvalidCall`."""
    check_of(type(call))(call)


@cache
def check_of(kind: type[Syscall]) -> Check:
    """The function that checks calls of `kind`. It is compiled, because a loop over the fields takes twice as long."""
    lines = [" pass"]
    names: dict[str, Any] = {}
    for field in _fields(kind):
        form = _form(field.type) if field.type != FUNCTION else A_FUNCTION
        if form is ANYTHING:
            continue
        name, space = field.name, " "
        if field.default is None or isinstance(field.default, bool | int | str):
            default = field.default if field.default is None or isinstance(field.default, bool) else f"default_{name}"
            names[f"default_{name}"] = field.default
            lines += [f" if call.{name} is not {default}:"]  # most fields have their defaults
            space = "  "
        names[f"take_{name}"] = _taker(kind, name, form)
        lines += [f"{space}v = call.{name}", f"{space}if not ({form.common}): call.{name} = take_{name}(v)"]
    defaults = [f"{name}={name}" for name in names if name.startswith("default_")]  # locals are faster than globals
    exec("\n".join([f"def check(call, {', '.join(defaults)}):", *lines]), names)
    check: Check = names["check"]
    return check


def _fields(kind: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    node = inspect.type_info(kind)
    assert isinstance(node, inspect.StructType)
    return node.fields


def _taker(kind: type[Syscall], name: str, form: FieldForm) -> Take:
    """The function that returns the plain value of the field `name` of a call, or raises `InvalidCall`."""
    take = _of_any_class(form)

    def take_field(value: Any) -> Any:
        try:
            return take(value)
        except Refused as refused:
            what, odd = f"{kind.__struct_config__.tag}: {name}{refused.path}", refused.value
            text = f"{what} is {shown(odd)}, of type {class_name(odd)}; pass {refused.expected}"
        raise ERRORS.get(name, InvalidCall)(text)

    return take_field


def _of_any_class(form: FieldForm) -> Take:
    """`form.take` for a value of any class."""
    expected, fits, take, _ = form

    def take_any(value: Any) -> Any:
        if not fits(type(value)):
            raise Refused(value, expected)
        return take(value)

    return take_any


# ---- one function for each kind of type


def _form(node: inspect.Type) -> FieldForm:
    match node:
        case inspect.IntType():
            return _integer(node.ge, node.le)
        case inspect.FloatType():
            return _number(node)
        case inspect.StrType():
            return _text(node.min_length or 0, node.max_length)
        case inspect.BoolType():
            return TRUTH
        case inspect.NoneType():
            return NOTHING
        case inspect.LiteralType():
            return _choice(node.values)
        case inspect.UnionType():
            return _any_of([_form(one) for one in node.types])
        case inspect.ListType():
            return _sequence(list, _form(node.item_type))
        case inspect.VarTupleType():
            return _sequence(tuple, _form(node.item_type))
        case inspect.DictType():
            return _mapping(_form(node.value_type))
        case inspect.StructType():
            return _struct(node)
        case inspect.AnyType() | inspect.RawType():
            return ANYTHING
    raise TypeError(f"a field of a system call has the type {node}, which `kernel.lib.call_checks` does not know")


def _same(value: Any) -> Any:
    return value


ANYTHING = FieldForm("anything", lambda kind: True, _same)
NOTHING = FieldForm("None", lambda kind: kind is type(None), _same, "v is None")
TRUTH = FieldForm("True or False", lambda kind: kind is bool, _same, "v is True or v is False")
FUNCTION = inspect.NoneType()  # in the decoder's eyes: a socket cannot carry a function


def _function(value: Any) -> Any:
    if value is None or callable(value):
        return value
    raise Refused(value, "a function, or None")


A_FUNCTION = FieldForm("a function, or None", lambda kind: True, _function)


def _integer(ge: int | None, le: int | None) -> FieldForm:
    least, most = LOWEST if ge is None else ge, HIGHEST if le is None or le >= HIGHEST else le
    size = "of at most 64 bits" if least == LOWEST else f"from {least} to {'2**63 - 1' if most == HIGHEST else most}"
    expected = f"a whole number (int) {size}"

    def take(value: int) -> int:
        if not least <= value <= most:
            raise Refused(value, expected)
        return value

    return FieldForm(expected, lambda kind: kind is int, take, f"type(v) is int and {least} <= v <= {most}")


def _number(node: inspect.FloatType) -> FieldForm:
    bounds = (("at least", ">=", node.ge), ("above", ">", node.gt), ("at most", "<=", node.le), ("below", "<", node.lt))
    given = [(words, sign, float(bound)) for words, sign, bound in bounds if bound is not None]
    expected = ", ".join(["a number", *(f"{words} {bound:g}" for words, _, bound in given)])
    inside = " and ".join(["v == v", *(f"v {sign} {bound!r}" for _, sign, bound in given)])  # v != v: not a number
    is_inside: Callable[[float], bool] = eval(f"lambda v: {inside}")

    def take(value: Any) -> float:
        try:
            plain: float = value if type(value) is int and LOWEST <= value <= HIGHEST else _plain_float(value)
        except OverflowError:
            raise Refused(value, expected) from None
        if not is_inside(plain):
            raise Refused(value, expected)
        return plain

    common = f"type(v) is float and {inside}"
    return FieldForm(expected, lambda kind: kind is int or issubclass(kind, float), take, common)


def _plain_float(value: float) -> float:
    """`value` as a float: a subclass, such as that of numpy, may compare in its own way. Raises `OverflowError`."""
    return float(value) if type(value) is int else float.__float__(value)


def _text(least: int, most: int | None) -> FieldForm:
    size = "" if most is None else f" of {least} to {most} characters"
    expected = f"text (str){size} that UTF-8 can encode"

    def take(value: str) -> str:
        text = str.__str__(value)  # of a member of an enumeration
        if least <= len(text) and (most is None or len(text) <= most) and (text.isascii() or is_encodable(text)):
            return text
        raise Refused(value, expected)

    common = "type(v) is str and v.isascii()" + ("" if most is None else f" and {least} <= len(v) <= {most}")
    return FieldForm(expected, _is_text, take, common)


def _is_text(kind: type) -> bool:
    return kind is str or (issubclass(kind, str) and issubclass(kind, Enum))


def _choice(values: tuple[Any, ...]) -> FieldForm:
    expected = "one of " + ", ".join(map(repr, values))

    def take(value: str) -> str:
        text = str.__str__(value)
        if text not in values:
            raise Refused(value, expected)
        return text

    return FieldForm(expected, _is_text, take)


def _any_of(forms: list[FieldForm]) -> FieldForm:
    def take(value: Any) -> Any:
        kind = type(value)
        return next(form for form in forms if form.fits(kind)).take(value)

    return FieldForm(
        ", or ".join(form.expected for form in forms),
        lambda kind: any(form.fits(kind) for form in forms),
        take,
        " or ".join(form.common for form in forms),
    )


def _sequence(kind: type[list[Any]] | type[tuple[Any, ...]], item: FieldForm) -> FieldForm:
    take_item = _of_any_class(item)

    def take(value: Any) -> Any:
        taken = []
        for place, one in enumerate(value):
            try:
                taken.append(take_item(one))
            except Refused as refused:
                refused.path = f"[{place}]{refused.path}"
                raise
        return kind(taken)

    return FieldForm(
        f"a {kind.__name__}", lambda of: of is list or of is tuple, take, f"type(v) is {kind.__name__} and not v"
    )


def _mapping(item: FieldForm) -> FieldForm:
    take_key, take_item = _of_any_class(_text(0, None)), _of_any_class(item)

    def take(value: Any) -> dict[str, Any]:
        if item is ANYTHING and type(value) is dict:
            for key in value:
                if type(key) is not str or not key.isascii():
                    break
            else:
                return value  # the most common: the arguments of a process
        taken = {}
        for key, one in dict.items(value):  # of a subclass, too, whose own methods may do anything
            try:
                taken[take_key(key)] = take_item(one)
            except Refused as refused:
                refused.path = f"[{shown(key)}]{refused.path}"
                raise
        return taken

    return FieldForm("a dict with texts as keys", lambda kind: issubclass(kind, dict), take)


def _struct(node: inspect.StructType) -> FieldForm:
    checks = [(field.name, _of_any_class(_form(field.type))) for field in node.fields]

    def take(value: Any) -> Any:
        changed = {}
        for name, take_field in checks:
            before = getattr(value, name)
            try:
                after = take_field(before)
            except Refused as refused:
                refused.path = f".{name}{refused.path}"
                raise
            if after is not before:
                changed[name] = after
        return msgspec.structs.replace(value, **changed) if changed else value

    return FieldForm(f"a {node.cls.__name__}", lambda kind: kind is node.cls, take)
