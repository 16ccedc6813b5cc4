"""Random system calls, and frames that are nearly right: a seed decides all of them.

Used by the trials that send them to a daemon or make them in an agent. It never leaves out a kind of call by itself:
the trials do, because some calls stop the daemon or harm their neighbours on purpose.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, get_args

import msgspec
from msgspec import inspect

from ipc.syscalls import Syscall, SystemCall

CALLS: list[type[Syscall]] = sorted(get_args(SystemCall), key=lambda kind: kind.__name__)
HALF = "\ufffd"  # in a frame, the bytes of half a surrogate take its place: see `encoded`
DEEP = msgspec.Raw(b"\x91" * 5_000 + b"\xc0")
HEADER = 4  # bytes

TEXTS = (
    "",
    "a",
    "double",
    "no such thing",
    "x" * 5_000,
    "\0",
    "../..",
    "/dev/null",
    "%s{}",
    "\x1b[2J",
    "a.b.*",
    HALF,
    "½ 語 🙂",
)
NUMBERS = (0, 1, -1, 7, 255, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
REALS = (0.0, 0.5, -0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))

# What the log says of mistakes in the kernel. The last two are texts of asyncio and uvloop.
MISTAKES = (
    *("failed inside the kernel", "the end of a process failed", "a message of a driver failed"),
    *("a read of the journal failed", "the journal failed", "Exception in callback", "Fatal error"),
)


def odd_value(chance: random.Random) -> Any:
    """A value of any type that a frame can carry."""
    flat: tuple[Any, ...] = (
        None,
        True,
        *NUMBERS,
        *REALS,
        *TEXTS,
        b"",
        b"\xff" * 100,
        [],
        {},
        [[[]]],
        {"a": {1: 2}},
        DEEP,
    )
    return chance.choice(flat)


class RandomCalls:
    """Calls with random fields, as the arrays that frames carry. `pids` are the processes that they may name.

    `oddness` is the share of the values that do not fit the type of their field.
    """

    def __init__(
        self, chance: random.Random, kinds: Sequence[type[Syscall]], pids: Sequence[int], oddness: float
    ) -> None:
        self._chance = chance
        self._kinds = kinds
        self._pids = pids
        self._oddness = oddness
        self._makers: dict[type[Syscall], list[tuple[str, Callable[[], Any]]]] = {}

    def call(self) -> list[Any]:
        """The tag of a call, and the values of its first fields, at times too few or too many."""
        kind = self._chance.choice(self._kinds)
        fields = self.fields(kind)
        if self._chance.random() < self._oddness:
            fields = [*fields[: self._chance.randrange(len(fields) + 1)], odd_value(self._chance)]
        return [kind.__struct_config__.tag, *fields]

    def fields(self, kind: type[Syscall]) -> list[Any]:
        """Random values for all fields of a call."""
        makers = self._makers.get(kind)
        if makers is None:
            node = inspect.type_info(kind)
            assert isinstance(node, inspect.StructType)
            makers = self._makers[kind] = [(field.name, self._maker(field.type)) for field in node.fields]
        return [self._field(name, make) for name, make in makers]

    def _field(self, name: str, make: Callable[[], Any]) -> Any:
        if self._chance.random() < self._oddness:
            return odd_value(self._chance)
        if name in ("pid", "to", "target", "recipient", "sender"):
            return self._chance.choice(self._pids)
        return make()

    def _maker(self, node: inspect.Type) -> Callable[[], Any]:
        """A function that makes values of a type, as far as it is known; any values of the others."""
        chance = self._chance
        if isinstance(node, inspect.UnionType):
            return self._one_of([self._maker(one) for one in node.types])
        if isinstance(node, inspect.NoneType):
            return lambda: None
        if isinstance(node, inspect.BoolType):
            return lambda: chance.random() < 0.5
        if isinstance(node, inspect.IntType):
            least = node.ge if node.ge is not None and node.ge > -(2**63) else 0
            most = node.le if node.le is not None and node.le < 2**63 - 1 else 20
            return lambda: chance.choice((least, most, chance.randint(least, most)))
        if isinstance(node, inspect.FloatType):
            return lambda: chance.choice((0.0, 0.001, 0.01))
        if isinstance(node, inspect.StrType):
            return lambda: chance.choice(TEXTS)
        if isinstance(node, inspect.LiteralType):
            return lambda: chance.choice(node.values)
        if isinstance(node, inspect.ListType | inspect.VarTupleType):
            make = self._maker(node.item_type)
            return lambda: [make() for _ in range(chance.randrange(4))]
        if isinstance(node, inspect.DictType):
            make = self._maker(node.value_type)
            return lambda: {chance.choice(TEXTS): make() for _ in range(chance.randrange(3))}
        if isinstance(node, inspect.StructType):
            return self._struct_maker(node)
        return lambda: odd_value(chance)

    def _one_of(self, makers: list[Callable[[], Any]]) -> Callable[[], Any]:
        def make() -> Any:
            return self._chance.choice(makers)()

        return make

    def _struct_maker(self, node: inspect.StructType) -> Callable[[], Any]:
        makers = [(field.encode_name, self._maker(field.type)) for field in node.fields]
        head = [node.tag] if node.array_like and node.tag is not None else []

        def make() -> Any:
            values = {name: self._field(name, maker) for name, maker in makers}
            return [*head, *values.values()] if node.array_like else values

        return make


def encoded(message: Any) -> bytes:
    """`message` as msgpack, with half surrogates, which no encoder writes."""
    return msgspec.msgpack.encode(message).replace(HALF.encode(), b"\xed\xa0\x80")


def mutated(payload: bytes, chance: random.Random) -> bytes:
    """The bytes of a frame, with its header, after one or two mistakes."""
    data = bytearray(len(payload).to_bytes(HEADER, "little") + payload)
    for _ in range(chance.randrange(1, 3)):
        place = chance.randrange(len(data))
        match chance.randrange(8):
            case 0 | 1:  # a bit
                data[place] ^= 1 << chance.randrange(8)
            case 2:  # a byte, often a type of msgpack
                data[place] = chance.choice((0xC0, 0xC1, 0xC6, 0xCF, 0xD3, 0xCB, 0xDD, 0xDF, 0xDB, 0xFF, 0x00))
            case 3:  # an end in the middle, with a header that fits
                cut = data[HEADER : max(place, HEADER)]
                data = bytearray(len(cut).to_bytes(HEADER, "little") + cut)
            case 4:  # another length
                data[:HEADER] = chance.choice((0, 1, len(data), 1 << 20, 0xFFFFFFFF)).to_bytes(HEADER, "little")
            case 5:  # a nest in the middle
                nest = bytes([0x91]) * chance.choice((10, 2_000, 100_000))
                inner = data[HEADER:place] + nest + data[place:] if place > HEADER else nest
                data = bytearray(len(inner).to_bytes(HEADER, "little") + inner)
            case 6:  # a part twice
                inner = data[HEADER:] + data[place:]
                data = bytearray(len(inner).to_bytes(HEADER, "little") + inner)
            case 7:  # text that is not UTF-8
                inner = data[HEADER:] + b"\xd9\x03\xff\xfe\xfd"
                data = bytearray(len(inner).to_bytes(HEADER, "little") + inner)
        if len(data) <= HEADER:
            break
    return bytes(data)
