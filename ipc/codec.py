"""The codec: msgpack by msgspec, with one encoder for all values and one decoder for each type, built once.

Called by connections, drivers, the journal and the clients. It turns errors of msgspec into errors of
`ipc.errors`. It does no I/O.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any

import msgspec

from ipc.errors import MAX_BRIEF, BurstExceeded, MalformedFrame, NotEncodable, brief, text_of
from ipc.foreign import bounded, class_name

ENCODER = msgspec.msgpack.Encoder()
UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)  # raised by the encoder
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # raised by the decoders, also of JSON
OF_MSGSPEC = frozenset({*UNENCODABLE, *UNDECODABLE, msgspec.ValidationError})


@cache
def decoder(kind: Hashable) -> msgspec.msgpack.Decoder[Any]:
    """The one decoder for `kind`, a type or a union of types."""
    return msgspec.msgpack.Decoder(kind)


def encode(value: Any) -> bytes:
    """Encode `value` as msgpack. Raises `NotEncodable`, which names the type of `value`."""
    try:
        return ENCODER.encode(value)
    except BurstExceeded:
        raise
    except BaseException as error:  # the encoder reads properties, which may raise anything
        raise not_encodable(value, error) from error


def not_encodable(value: Any, error: BaseException) -> NotEncodable:
    """A `NotEncodable` for `value`, at which the encoder raised `error`."""
    return NotEncodable(f"cannot encode a {class_name(value)} as msgpack: {reason_of(error)}")


def decode(data: bytes | msgspec.Raw, kind: Any = Any) -> Any:
    """Decode `data` and check it against `kind`, a type or a union of types. Raises `MalformedFrame`."""
    try:
        return decoder(kind).decode(data)
    except Exception as error:
        raise MalformedFrame(f"not a {getattr(kind, '__name__', kind)}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Why msgspec did not take a value: the text of its error `error`, or name and text of an error of an agent."""
    return bounded(text_of(error), MAX_BRIEF) if type(error) in OF_MSGSPEC else brief(error)


PLAIN = frozenset({str, bytes, float, bool, type(None)})


def isolate(value: Any) -> Any:
    """Turn `value` into a form that nobody can change. Undone by `reveal`. Raises `NotEncodable`.

    An immutable value is returned unchanged, any other value as its encoding (`msgspec.Raw`). Every frozen Struct
    counts as immutable, so nobody may put a mutable value into a field of one.
    """
    kind = type(value)
    if kind in PLAIN or kind is msgspec.Raw:
        if kind is str and not value.isascii():
            encode(value)  # raises `NotEncodable` at half a surrogate, to the code that passed the text
        return value
    if kind is int and -(1 << 63) <= value < 1 << 64:
        return value
    if issubclass(kind, msgspec.Struct) and kind.__struct_config__.frozen:
        return value
    return msgspec.Raw(encode(value))


def reveal(value: Any) -> Any:
    """Undo `isolate`. Each call decodes an encoded value again, so each receiver gets its own copy."""
    return decode(value) if type(value) is msgspec.Raw else value
