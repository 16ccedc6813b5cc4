"""The codec: msgpack by msgspec, one encoder for all and one decoder per type, built once and kept.

Called by transports, the kernel's border and the clients. Failures become the named errors of `ipc.errors`.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any

import msgspec

from ipc.errors import MalformedFrame, NotEncodable

ENCODER = msgspec.msgpack.Encoder()
UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)  # what it raises


@cache
def decoder(kind: Hashable) -> msgspec.msgpack.Decoder[Any]:
    """The one decoder for `kind`, a type or a union of types."""
    return msgspec.msgpack.Decoder(kind)


def encode(value: Any) -> bytes:
    """Encode `value` as msgpack. Raises `NotEncodable`, which names the type that cannot be carried."""
    try:
        return ENCODER.encode(value)
    except UNENCODABLE as error:
        raise not_encodable(value, error) from error


def not_encodable(value: Any, error: Exception) -> NotEncodable:
    """The named error for what the encoder raised at `value`."""
    return NotEncodable(f"cannot encode a {type(value).__name__} as msgpack: {error}")


def decode(data: bytes | msgspec.Raw, kind: Any = Any) -> Any:
    """The value in `data`, checked against `kind`. Raises `MalformedFrame`."""
    try:
        return decoder(kind).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedFrame(f"not a {getattr(kind, '__name__', kind)}: {error}") from error


PLAIN = frozenset({str, bytes, float, bool, type(None)})


def isolate(value: Any) -> Any:
    """`value` in a form that nobody can change: itself if it is immutable, else its encoding as `msgspec.Raw`.

    Frozen Structs pass as they are; what they hold is their maker's promise. Raises `NotEncodable`.
    """
    kind = type(value)
    if kind in PLAIN or kind is msgspec.Raw:
        return value
    if kind is int and -(1 << 63) <= value < 1 << 64:
        return value
    if issubclass(kind, msgspec.Struct) and kind.__struct_config__.frozen:
        return value
    return msgspec.Raw(encode(value))


def reveal(value: Any) -> Any:
    """The value that `isolate` was given, decoded afresh for its receiver if it was encoded."""
    return decode(value) if type(value) is msgspec.Raw else value
