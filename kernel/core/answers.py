"""Answers to calls: the values of `Thread.answer` other than a reply, and the marks for callers that gave up.

Used by `kernel.messages` and `kernel.durable.messages`, which put the answer into the calling thread. It never wakes a
thread.
"""

from __future__ import annotations

from ipc.errors import LlmosError
from kernel.core.process import Process

LATE_REPLIES = 1000  # with more pending calls than this, a process does not remember the callers that gave up

UNANSWERED = object()  # the `Thread.answer` of a caller that still waits


class Unanswerable:
    """The answer to a call that will get no reply. The caller raises `error`."""

    __slots__ = ("error",)

    def __init__(self, error: LlmosError) -> None:
        self.error = error


def mark_caller_gone(recipient: Process, message: int) -> None:
    """Record that the caller of `message` has given up. A late reply then becomes a dead letter.

    Beyond `LATE_REPLIES` the call is forgotten, and a late reply raises `NotACall` in the recipient.
    """
    pending_calls = recipient.pending_calls
    if pending_calls is not None and message in pending_calls:
        pending_calls[message] = None
        if len(pending_calls) > LATE_REPLIES:
            del pending_calls[message]
