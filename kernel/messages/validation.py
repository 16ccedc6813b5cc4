"""The checks of a message before it is delivered: its heading, its size, and the types that its recipient declares.

Called by the message subsystem, by publication, and by the messages of durable processes. `build_message` makes the
message of a call that passes the checks. This module never puts a message into a mailbox.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

import msgspec

from ipc.codec import decoder, isolate, reason_of
from ipc.errors import BadMessage, BurstExceeded, InvalidCall, MessageTooLarge, UndeclaredType
from ipc.foreign import shown
from ipc.messages import Message
from ipc.syscalls import Call, Publish, Send
from kernel.core.process import Process
from kernel.lib.validation import check_priority, check_seconds, check_text
from kernel.messages.body_size import SMALL_BODY, size

MAX_TYPE = 4096  # characters of the type of a message, which may be a topic
MAX_BODY = 4 * 1024 * 1024  # bytes of an encoded body; larger values belong in shared memory
MAX_INT = 2**63 - 1  # the largest signed integer of msgpack
MIN_INT = -MAX_INT

# For speed, `send` and `call` repeat the checks of common messages inline, with the constants below.
SHORT_TEXT = SMALL_BODY  # characters; in ASCII as many bytes, for which a mailbox does not count the bytes
SMALL_TYPES = frozenset({bool, float, type(None)})  # their values are immutable and never too large
UNTYPED, ZERO = "", 0  # a heading field that is this very object has its default, and needs no check


def build_message(
    process: Process,
    recipient: Process,
    call: Send | Call | Publish,
    number: int,
    until: float = inf,
) -> Message:
    """Check `call`, and make the message that it sends from `process` to `recipient`, with the id `number`.

    The message expires at the loop time `until`, or after the lifetime in `call`. `Messaging.send` and `Messaging.call`
    do the same inline.
    """
    deadline = None if until == inf else until
    correlation = number if type(call) is Call else 0
    if isinstance(call, Publish):
        kind, body = call.topic, isolate_bounded(call.body)
    else:
        kind, body = prepare(recipient, call.type, call.body)
    if not isinstance(call, Call) and call.lifetime is not None:
        deadline = deadline_after(call.lifetime, asyncio.get_running_loop())
    if isinstance(call, Send):
        correlation = call.correlation
    check_heading(kind, call.priority, correlation)
    process.messages_sent += 1
    return Message(number, kind, process.pid, recipient.pid, call.priority, correlation, deadline, body)


def prepare(recipient: Process, kind: str, body: Any) -> tuple[str, Any]:
    """The type and the body that go into the mailbox: isolated, within the size limit, and declared by `recipient`.

    Raises `MessageTooLarge`, `NotEncodable`, `UndeclaredType`, `BadMessage`.
    """
    if not kind and isinstance(body, msgspec.Struct):
        kind = type(body).__name__
    body = isolate_bounded(body)
    return kind, body if recipient.accepts is None else to_declared_type(recipient, kind, body)


def to_declared_type(recipient: Process, kind: str, body: Any) -> Any:
    """`body` as the Struct that `recipient` declares under the name `kind`. Decodes an encoded body, once.

    Raises `UndeclaredType`, `BadMessage`.
    """
    accepts = recipient.accepts or {}
    declared = accepts.get(kind)
    if declared is None:
        names = ", ".join(sorted(accepts)) or "none"
        raise UndeclaredType(
            f"process {recipient.pid} ({recipient.program}) takes no message of type {kind!r}; it declares: {names}",
            type=kind,
            accepts=sorted(accepts),
        )
    if isinstance(body, declared):
        return body
    try:
        if isinstance(body, msgspec.Raw):
            return decoder(declared).decode(body)
        return msgspec.convert(body, declared, from_attributes=True)
    except BurstExceeded:
        raise
    except BaseException as error:  # also of the code of the declared type
        why = f"the body of a {kind} for process {recipient.pid} ({recipient.program}): {reason_of(error)}"
        raise BadMessage(why) from error


def check_heading(kind: str, priority: int, correlation: int = 0) -> None:
    """Check the type, the priority and the correlation id of a message. Raises `InvalidCall`."""
    check_text(kind, "the type of a message", MAX_TYPE)
    check_priority(priority)
    if type(correlation) is not int or not 0 <= correlation <= MAX_INT:
        raise InvalidCall(f"a correlation id is a whole number from 0 to {MAX_INT}; {shown(correlation)} is not")


def isolate_bounded(body: Any) -> Any:
    """`body` isolated (`ipc.codec.isolate`). Raises `MessageTooLarge`, `NotEncodable`."""
    body = isolate(body)
    if (length := size(body)) > MAX_BODY:
        raise MessageTooLarge(
            f"a body of {length} bytes is more than a message may carry ({MAX_BODY}); put it into shared memory and "
            "send its name",
            size=length,
            limit=MAX_BODY,
        )
    return body


def deadline_after(lifetime: float, loop: asyncio.AbstractEventLoop) -> float | None:
    """The loop time `lifetime` seconds from now; None if the lifetime is infinite. Raises `InvalidCall`."""
    seconds = check_seconds(lifetime, "lifetime")
    return None if seconds is None else loop.time() + seconds
