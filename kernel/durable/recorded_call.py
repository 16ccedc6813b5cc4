"""The record of a system call in the journal: a fingerprint of the call, and its outcome.

Written and read by the replay. Every recorded answer is encoded and decoded here, also when the kernel gives it for the
first time, so that an agent gets the same value from the journal. It never compares or replays anything.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import msgspec

from ipc.codec import decode, encode
from ipc.errors import ErrorInfo
from ipc.messages import Message
from ipc.syscalls import Limits, Receive, Spawn, Syscall
from kernel.core.process import Process
from kernel.messages.validation import to_declared_type

SHOWN_BYTES = 512  # bytes of an encoded call that a record stores for error texts
TEXT_CHARACTERS = 400  # characters of a call in an error text

# Encodes mappings and sets in sorted order, because their own order may differ in another run of the daemon.
ENCODER = msgspec.msgpack.Encoder(order="deterministic")


class CallFingerprint(msgspec.Struct, frozen=True, array_like=True):
    """Identifies a call: its kind, a digest of its encoding with all arguments, and the first bytes of the encoding."""

    kind: str
    digest: bytes
    shown: bytes

    def __str__(self) -> str:
        try:
            text = repr(msgspec.msgpack.decode(self.shown)[1:])
        except Exception:  # `shown` is only the beginning of the encoding
            text = repr(self.shown) + "…"
        return f"{self.kind} {text if len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS] + '…'}"


class RecordedValue(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The answer, and the tokens that the process had used in all its calls so far."""

    value: msgspec.Raw
    prompt_tokens: int = 0
    generated_tokens: int = 0


class RecordedFailure(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The error that the call raised."""

    error: ErrorInfo


class RecordedCancellation(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The process itself cancelled the call, such as by a timeout."""


class RecordedDeadline(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The time at which a sleep or the timeout of a wait ends, in seconds since the epoch. The call is in progress."""

    due: float


class RecordedRegion(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A result that a tool returned by reference: the name of the shared region, and the value in it."""

    name: str
    value: msgspec.Raw


Outcome = RecordedValue | RecordedFailure | RecordedCancellation | RecordedDeadline | RecordedRegion


def fingerprint_of(call: Syscall) -> CallFingerprint:
    """The fingerprint of `call`; an empty digest if it cannot be encoded."""
    if type(call) is Receive and call.where is not None:
        call = msgspec.structs.replace(call, where=None)  # a function cannot be compared with itself in another run
    kind = type(call).__name__
    try:
        text = ENCODER.encode(_without_new_fields(call))
    except Exception:
        return CallFingerprint(kind, b"", b"")  # the call will fail for the same reason
    return CallFingerprint(kind, hashlib.blake2b(text, digest_size=12).digest(), text[:SHOWN_BYTES])


def _without_new_fields(call: Syscall) -> Syscall | list[Any]:
    """A value whose encoding is that of `call` before fields were appended, as far as these have their defaults."""
    limits = call.limits if isinstance(call, Spawn) else None
    if not call.appended and limits is None:
        return call
    fields = list(msgspec.structs.astuple(call))
    if limits is not None:
        fields[call.__struct_fields__.index("limits")] = _limits_without_new_fields(limits)
    defaults = list(call.__struct_defaults__[-call.appended :]) if call.appended else []
    while defaults and fields[-1] == defaults.pop():
        fields.pop()
    return [call.__struct_config__.tag, *fields]


def _limits_without_new_fields(limits: Limits) -> msgspec.Raw:
    """The encoding of `limits`, a mapping, without the appended fields at the end that are None."""
    named = list(msgspec.structs.asdict(limits).items())
    old = len(named) - limits.appended
    while len(named) > old and named[-1][1] is None:
        named.pop()
    # By hand: the encoder would sort a dictionary, but it leaves the fields of a Struct in their order.
    return msgspec.Raw(bytes([0x80 | len(named)]) + b"".join(map(ENCODER.encode, itertools.chain(*named))))


def raw(value: Any) -> msgspec.Raw:
    """`value` encoded. Raises `NotEncodable`."""
    return value if type(value) is msgspec.Raw else msgspec.Raw(encode(value))


def revealed(process: Process, call: Syscall, value: msgspec.Raw) -> Any:
    """Decode `value`, the answer to `call`, to the type that the caller gets. Raises `MalformedFrame`."""
    answer = decode(value, type(call).returns or Any)
    if isinstance(answer, Message):
        return declared(process, answer)
    return answer


def declared(process: Process, message: Message) -> Message:
    """`message`, with its body as the Struct that `process` declares for its type, if it declares one."""
    if process.accepts is None or message.type not in process.accepts:
        return message
    return msgspec.structs.replace(message, body=to_declared_type(process, message.type, message.body))
