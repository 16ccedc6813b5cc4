"""The codec: every message survives encoding and decoding, and garbage raises a named error."""

from __future__ import annotations

import contextlib
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ipc.messages
import ipc.protocol
import kernel.drivers.protocol
from ipc.codec import decode, encode
from ipc.errors import MalformedFrame, NotEncodable, ProtocolError
from ipc.syscalls import SystemCall
from tests.support.strategies import struct_values, values

# ---- encoding and decoding


def members(union: Any) -> list[type[msgspec.Struct]]:
    return list(typing.get_args(union))


UNIONS: list[tuple[Any, type[msgspec.Struct]]] = [
    (union, kind)
    for union in (
        ipc.protocol.ToDaemon,
        ipc.protocol.FromDaemon,
        ipc.messages.Event,
        SystemCall,
        kernel.drivers.protocol.ToDriver,
        kernel.drivers.protocol.FromDriver,
    )
    for kind in members(union)
]


@pytest.mark.parametrize(("union", "kind"), UNIONS, ids=lambda value: getattr(value, "__name__", ""))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_message_survives_the_wire(union: Any, kind: type[msgspec.Struct], data: Any) -> None:
    message = data.draw(struct_values(kind))
    wire = encode(message)
    back = decode(wire, union)
    assert type(back) is kind
    # A Raw compares by its bytes, which are copied unchanged: encoding it again must give the same bytes.
    assert encode(back) == wire


@pytest.mark.parametrize("kind", members(SystemCall), ids=lambda kind: kind.__name__)
def test_every_call_has_a_handler_an_answer_type_and_a_name_of_its_own(kind: type[msgspec.Struct]) -> None:
    assert hasattr(kind, "returns")
    assert kind.__doc__
    tags = [other.__struct_config__.tag for other in members(SystemCall)]
    assert tags.count(kind.__struct_config__.tag) == 1


# ---- garbage

WIRE_TYPES = [
    ipc.protocol.ToDaemon,
    ipc.protocol.FromDaemon,
    kernel.drivers.protocol.ToDriver,
    kernel.drivers.protocol.FromDriver,
    Any,
]


def decodes_or_is_refused(data: bytes) -> None:
    for kind in WIRE_TYPES:
        with contextlib.suppress(ProtocolError):
            decode(data, kind)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_errors_of_the_tree(data: bytes) -> None:
    decodes_or_is_refused(data)


@settings(max_examples=300, deadline=None)
@given(
    message=values(ipc.protocol.ToDaemon) | values(kernel.drivers.protocol.FromDriver),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    length=st.floats(0, 1),
)
def test_truncated_and_mutated_messages_raise_nothing_but_errors_of_the_tree(
    message: Any, changes: list[tuple[int, int]], length: float
) -> None:
    data = bytearray(encode(message))
    for place, byte in changes:
        data[place % len(data)] = byte
    decodes_or_is_refused(bytes(data))
    decodes_or_is_refused(bytes(data[: int(len(data) * length)]))


def test_deep_nesting_is_refused_and_overflows_nothing() -> None:
    for data in (b"\x91" * 100_000, b"\x81\xa1a" * 100_000):
        with pytest.raises(MalformedFrame):
            decode(data)


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(MalformedFrame):
        decode(encode([1]) + b"\x00")


@pytest.mark.parametrize("value", [object(), 2**64, -(2**63) - 1, {1, object()}, "\ud800", lambda: 0])
def test_what_msgpack_cannot_carry_is_not_encodable(value: Any) -> None:
    with pytest.raises(NotEncodable, match=type(value).__name__):
        encode(value)


def test_a_value_that_holds_itself_is_not_encodable() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotEncodable):
        encode(loop)
