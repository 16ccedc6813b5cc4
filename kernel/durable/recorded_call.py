"""What the journal keeps of a system call: what was asked, and what came of it.

Made and read by the replay. What a durable process is answered has always gone through here, so that it is the same
value whether it comes from the kernel or from the journal: what msgpack makes of it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from ipc.codec import UNENCODABLE, decode, encode
from ipc.errors import ErrorInfo
from ipc.messages import Message
from ipc.syscalls import Receive, Syscall
from kernel.core.process import Process
from kernel.messages.validation import check

SHOWN = 512  # bytes of an encoded call that are kept, to show them
TEXT = 400  # characters of a call in an error

# Mappings and sets in one order, whatever that of their making: it changes from one interpreter to the next.
ENCODER = msgspec.msgpack.Encoder(order="deterministic")


class CallFingerprint(msgspec.Struct, frozen=True, array_like=True):
    """A call: its kind, a digest of it with all its arguments, and the beginning of its encoding."""

    kind: str
    digest: bytes
    shown: bytes

    def __str__(self) -> str:
        try:
            text = repr(msgspec.msgpack.decode(self.shown)[1:])
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError):  # cut, as it is long
            text = repr(self.shown) + "…"
        return f"{self.kind} {text if len(text) <= TEXT else text[:TEXT] + '…'}"


class RecordedValue(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """What was answered. Tokens: what the process had used by then."""

    value: msgspec.Raw
    prompt_tokens: int = 0
    generated_tokens: int = 0


class RecordedFailure(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The error that was raised."""

    error: ErrorInfo


class RecordedCancellation(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The call was cancelled by the process itself: by a timeout, say."""


class RecordedDeadline(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A sleep that began, or a wait, and when its time is over: seconds since the epoch."""

    due: float


class RecordedRegion(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The result of a tool that was handed over by reference: the region, and what was in it."""

    name: str
    value: msgspec.Raw


Outcome = RecordedValue | RecordedFailure | RecordedCancellation | RecordedDeadline | RecordedRegion


def asked(call: Syscall) -> CallFingerprint:
    """The call as it is kept."""
    if type(call) is Receive and call.where is not None:
        call = msgspec.structs.replace(call, where=None)  # a function is the same to nobody
    kind = type(call).__name__
    try:
        text = ENCODER.encode(call)
    except UNENCODABLE:
        return CallFingerprint(kind, b"", b"")  # it fails by that
    return CallFingerprint(kind, hashlib.blake2b(text, digest_size=12).digest(), text[:SHOWN])


def raw(value: Any) -> msgspec.Raw:
    """`value` encoded. Raises `NotEncodable`."""
    return value if type(value) is msgspec.Raw else msgspec.Raw(encode(value))


def revealed(process: Process, call: Syscall, value: msgspec.Raw) -> Any:
    """The answer to `call` that `value` holds, as its caller gets it. Raises `MalformedFrame`."""
    answer = decode(value, type(call).returns or Any)
    if isinstance(answer, Message):
        return declared(process, answer)
    return answer


def declared(process: Process, message: Message) -> Message:
    """`message` with its body as the Struct that `process` declares for its type, if it does."""
    if process.accepts is None or message.type not in process.accepts:
        return message
    return msgspec.structs.replace(message, body=check(process, message.type, message.body))
