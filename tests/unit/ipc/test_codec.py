"""What comes over a wire: frames in any pieces, every message there and back, and garbage that harms nobody."""

from __future__ import annotations

import contextlib
import itertools
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ipc.messages
import ipc.protocol
import kernel.drivers.protocol
from ipc import errors
from ipc.codec import decode, encode, isolate, reveal
from ipc.errors import FrameTooLarge, LlmosError, MalformedFrame, NotEncodable, ProtocolError, from_wire, to_wire
from ipc.frames import HEADER, FrameDecoder, frame
from ipc.syscalls import SystemCall

# ---- frames


@given(payloads=st.lists(st.binary(max_size=50), max_size=10), cuts=st.lists(st.integers(0, 600), max_size=20))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(payloads: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(frame, payloads))
    borders = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    decoder = FrameDecoder()
    got = [payload for start, end in itertools.pairwise(borders) for payload in decoder.feed(data[start:end])]
    assert got == payloads
    assert decoder.pending == 0


def test_a_frame_may_come_byte_by_byte() -> None:
    decoder = FrameDecoder()
    data = frame(b"hello") + frame(b"") + frame(b"you")
    assert [payload for byte in data for payload in decoder.feed(bytes([byte]))] == [b"hello", b"", b"you"]


@given(limit=st.integers(0, 100), over=st.integers(1, 1000), before=st.binary(max_size=20), cut=st.integers(1, 4))
def test_a_frame_over_the_limit_is_refused_at_its_header(limit: int, over: int, before: bytes, cut: int) -> None:
    decoder = FrameDecoder(limit)
    header = HEADER.pack(limit + over)
    first = frame(before[:limit]) + header[:cut]
    got: list[bytes] = []

    def feed() -> None:
        for piece in (first, header[cut:] + b"x"):
            for payload in decoder.feed(piece):
                got.append(payload)  # noqa: PERF402 - what came before the error counts

    with pytest.raises(FrameTooLarge) as caught:
        feed()
    assert got == [before[:limit]]
    assert caught.value.data == {"length": limit + over, "limit": limit}
    assert decoder.pending <= 8


def test_a_frame_of_exactly_the_limit_passes() -> None:
    decoder = FrameDecoder(10)
    assert list(decoder.feed(frame(b"0123456789"))) == [b"0123456789"]


# ---- messages there and back

Scalar = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(max_size=10)
)
Plain = st.recursive(
    Scalar | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of `kind`, as msgspec sees it: a Struct, a union, a container or a constrained scalar."""
    return of_info(msgspec.inspect.type_info(kind))


def of_info(info: Any) -> st.SearchStrategy[Any]:
    i = msgspec.inspect
    match info:
        case i.StructType():
            return st.deferred(lambda: struct_values(info.cls))
        case i.UnionType():
            return st.one_of([of_info(kind) for kind in info.types])
        case i.IntType():
            low = info.ge if info.ge is not None else info.gt if info.gt is not None else -(2**63)
            return st.integers(int(low), int(info.le if info.le is not None else 2**63 - 1))
        case i.FloatType():
            exclusive = info.gt is not None
            low = info.gt if exclusive else info.ge
            return st.floats(low, info.le, exclude_min=exclusive, allow_nan=False, allow_infinity=False)
        case i.StrType():
            return st.text(min_size=info.min_length or 0, max_size=20)
        case i.BoolType():
            return st.booleans()
        case i.NoneType():
            return st.none()
        case i.ListType():
            return st.lists(of_info(info.item_type), max_size=3)
        case i.VarTupleType():
            return st.lists(of_info(info.item_type), max_size=3).map(tuple)
        case i.DictType():
            return st.dictionaries(of_info(info.key_type), of_info(info.value_type), max_size=3)
        case i.AnyType():
            return Plain
        case i.LiteralType():
            return st.sampled_from(info.values)
        case i.RawType():
            return Plain.map(lambda value: msgspec.Raw(encode(value)))
    raise AssertionError(f"no strategy for {info}")


def struct_values(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    fields = msgspec.inspect.type_info(kind).fields  # type: ignore[attr-defined]
    return st.builds(kind, **{field.name: of_info(field.type) for field in fields})


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
    # Raw compares by its bytes, which are copied as they are: so encoding again must give the same.
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


# ---- errors


ERRORS = sorted(LlmosError.registry.items())


@pytest.mark.parametrize(("name", "kind"), ERRORS, ids=[name for name, _ in ERRORS])
def test_every_error_keeps_its_type_message_and_facts(name: str, kind: type[LlmosError]) -> None:
    error = kind("what was wrong", pid=7, text="ü", list=[1, 2])
    info = decode(encode(to_wire(error)), errors.ErrorInfo)
    back = from_wire(info)
    assert type(back) is kind
    assert (back.message, back.data) == ("what was wrong", {"pid": 7, "text": "ü", "list": [1, 2]})
    assert name == kind.__name__


def test_an_error_of_a_newer_daemon_becomes_a_plain_one_that_names_it() -> None:
    back = from_wire(errors.ErrorInfo("BrandNew", "sentence", {"n": 1}))
    assert type(back) is LlmosError
    assert (back.message, back.data) == ("BrandNew: sentence", {"n": 1})


def test_an_error_can_always_be_told_whatever_is_in_its_text_and_its_facts() -> None:
    """Else whoever waits for it would wait for ever."""
    info = to_wire(errors.ToolFailed("half a \ud800", traceback="\ud800", pid=5, what=object()))
    assert decode(encode(info), errors.ErrorInfo) == errors.ErrorInfo("ToolFailed", "half a ?", {"traceback": "?"})
    assert to_wire(ValueError("\ud800")).message == "ValueError: ?"


def test_an_error_from_outside_the_tree_keeps_its_type_in_the_message() -> None:
    back = from_wire(to_wire(KeyError("x")))
    assert type(back) is LlmosError
    assert back.message == "KeyError: 'x'"


def test_facts_called_like_parameters_survive() -> None:
    back = from_wire(errors.ErrorInfo("NotFound", "sentence", {"message": "fact", "self": 1}))
    assert back.message == "sentence"
    assert back.data == {"message": "fact", "self": 1}


# ---- isolation


@given(Plain)
def test_isolation_gives_the_same_value_and_shares_nothing_that_can_change(value: Any) -> None:
    isolated = isolate(value)
    assert reveal(isolated) == value
    assert not isinstance(isolated, list | dict | bytearray)
    one, two = reveal(isolated), reveal(isolated)
    assert not ({id(part) for part in mutable_parts(one)} & {id(part) for part in mutable_parts(two)})
    assert not ({id(part) for part in mutable_parts(one)} & {id(part) for part in mutable_parts(value)})


def mutable_parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *(part for item in value.values() for part in mutable_parts(item))]
    if isinstance(value, list):
        return [value, *(part for item in value for part in mutable_parts(item))]
    return []


class Thawed(msgspec.Struct):
    items: list[int]


def test_a_struct_that_can_change_is_copied() -> None:
    value = Thawed([1])
    isolated = isolate(value)
    value.items.append(2)
    assert reveal(isolated) == {"items": [1]}


def test_a_subclass_of_a_plain_type_is_not_passed_on_as_it_is() -> None:
    class Name(str):
        extra: list[int]

    with pytest.raises(NotEncodable):
        isolate(Name("x"))


def test_numbers_out_of_range_are_refused_by_isolation() -> None:
    for number in (2**64, -(2**63) - 1):
        with pytest.raises(NotEncodable):
            isolate(number)
    for number in (2**64 - 1, -(2**63)):
        assert isolate(number) == number
