"""Answers to calls: the values of `Thread.answer` other than a reply, and the marks for callers that gave up.

Used by `kernel.messages` and `kernel.durable.messages`, which put the answer into the calling thread. A late reply,
whose caller has given up, is never an error of the replying process. It never wakes a thread.
"""

from __future__ import annotations

from ipc.errors import LlmosError, NotACall
from ipc.syscalls import Reply
from kernel.core.process import Process

LATE_REPLIES = 1000  # with more pending calls than this, a process does not remember which callers gave up

UNANSWERED = object()  # the `Thread.answer` of a caller that still waits


class Unanswerable:
    """The answer to a call that will get no reply. The caller raises `error`."""

    __slots__ = ("error",)

    def __init__(self, error: LlmosError) -> None:
        self.error = error


def mark_caller_gone(recipient: Process, message: int) -> None:
    """Record that the caller of `message` has given up. A late reply then becomes a dead letter.

    Beyond `LATE_REPLIES` pending calls no marks are added, and `forgotten` is the highest id that got none. From then
    on every unknown id up to this one may be that of such a call: see `check_reply`. Ids count up, but those of the
    calls of durable processes are higher than all others, so after one of these, every id from the counter may be one.
    """
    pending_calls = recipient.pending_calls
    if pending_calls is not None and message in pending_calls:
        pending_calls[message] = None
        if len(pending_calls) > LATE_REPLIES:
            del pending_calls[message]
            pending_calls.forgotten = max(pending_calls.forgotten, message)


def check_reply(process: Process, call: Reply) -> None:
    """Check `call`, a reply of `process` to a message that is none of its pending calls.

    Raises `NotACall`, unless the message may be a call that was forgotten because its caller gave up.
    """
    pending_calls = process.pending_calls
    if pending_calls is None or not 0 < call.message <= pending_calls.forgotten:
        raise NotACall(f"message {call.message} of process {call.to} awaits no reply: it is no call, or was answered")
