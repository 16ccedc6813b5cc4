"""Calls with one odd field each: every field of every system call, with every value that is not quite of its type.

Used by the tests of values that agents and clients pass in. `calls` generates the calls from the definitions in
`ipc.syscalls`, so a new call is tested without a change here. It never leaves out a call: the tests do.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
from msgspec import inspect

from ipc.syscalls import StartThread, Syscall
from tests.support.fuzzing import CALLS
from tests.support.hostile import Name, Number, Thing, Whole, Word

try:
    import numpy
except ImportError:  # an optional part of the installation needs it
    FROM_NUMPY: dict[str, Any] = {}
else:
    FROM_NUMPY = {
        "int64": numpy.int64(3),
        "int8": numpy.int8(3),
        "float64": numpy.float64(0.5),
        "float32": numpy.float32(0.5),
        "str_": numpy.str_("a"),
        "bytes_": numpy.bytes_(b"a"),
        "bool": numpy.bool_(True),
        "array": numpy.array([3, 4]),
        "0-d array": numpy.array(3),
    }

KINDS: list[type[Syscall]] = [*CALLS, StartThread]


class Text(enum.StrEnum):
    ONE = "one"


class Level(enum.IntEnum):
    THREE = 3


class Sealed(msgspec.Struct, frozen=True):
    """Counts as immutable, whatever is in it."""

    inside: Any


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


ITSELF: list[Any] = []
ITSELF.append(ITSELF)

# Values that a frame can carry, too.
PLAIN: dict[str, Any] = {
    "None": None,
    "True": True,
    "-1": -1,
    "2**63 - 1": 2**63 - 1,
    "2**63": 2**63,
    "-2**63": -(2**63),
    "0.0": 0.0,
    "-0.5": -0.5,
    "NaN": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "1e300": 1e300,
    "no text": "",
    "text": "a",
    "a digit": "3",
    "bytes": b"a",
    "zero byte": "\0",
    "list": [],
    "dict": {},
    "nest": [[3]],
    "a number as key": {1: 2},
    "a list of numbers": [3],
    "a tuple": (3,),
}

ODD: dict[str, Any] = {
    **PLAIN,
    "Decimal": Decimal(3),
    "Fraction": Fraction(1, 2),
    "complex": 3j,
    "2**64": 2**64,
    "2**70": 2**70,
    "-2**70": -(2**70),
    "10**400": 10**400,
    "half a letter": "half a \ud800",
    "StrEnum": Text.ONE,
    "IntEnum": Level.THREE,
    "subclass of str": Name("a"),
    "hostile str": Word("a"),
    "hostile float": Number(0.5),
    "hostile int": Whole(3),
    "bytearray": bytearray(b"a"),
    "OrderedDict": OrderedDict(a=1),
    "half a letter as key": {"\ud800": 1},
    "object": Thing(),
    "class": int,
    "function": len,
    "itself": ITSELF,
    "deep": _nested(5_000),
    "set": {3},
    "a sealed Decimal": Sealed(Decimal(3)),
    "a sealed object": Sealed(object()),
    "a sealed letter": Sealed("\ud800"),
    **{f"numpy {name}": value for name, value in FROM_NUMPY.items()},
}


def fields(kind: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    """The fields of a call, with their types."""
    node = inspect.type_info(kind)
    assert isinstance(node, inspect.StructType)
    return node.fields


def fitting(node: inspect.Type) -> Any:
    """A value of the type `node`, with which a call neither waits for long nor does harm."""
    match node:
        case inspect.UnionType():
            return None if any(isinstance(one, inspect.NoneType) for one in node.types) else fitting(node.types[0])
        case inspect.IntType():
            return 999_999 if node.le is None or node.le > 999_999 else max(node.ge or 0, 0)
        case inspect.FloatType():
            return 0.5
        case inspect.StrType():
            return "a"
        case inspect.BoolType():
            return False
        case inspect.LiteralType():
            return node.values[0]
        case inspect.ListType():
            return []
        case inspect.VarTupleType():
            return ()
        case inspect.DictType():
            return {}
        case inspect.StructType():
            return node.cls()
    return None


def calls(kinds: Iterable[type[Syscall]], values: dict[str, Any], **others: Any) -> Iterator[tuple[str, str, Syscall]]:
    """Each call with one odd field: a description, the name of the field, and the call.

    `others`: values of fields with these names, while another field is odd.
    """
    for kind in kinds:
        known = {field.name: others.get(field.name, fitting(field.type)) for field in fields(kind)}
        for field in known:
            for name, value in values.items():
                yield f"{kind.__name__}.{field} = {name}", field, kind(**{**known, field: value})
