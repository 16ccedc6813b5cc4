"""Answers to calls: the values that `Thread.answer` of a waiting caller can have, and callers that gave up.

The messages of processes and of durable processes use it to put an answer into the thread. It never wakes a thread.
"""

from __future__ import annotations

from ipc.errors import LlmosError
from kernel.core.process import Process

LATE_REPLIES = 1000  # a process with more pending calls forgets those that timed out

UNANSWERED = object()  # the `Thread.answer` of a caller that waits


class Unanswerable:
    """The answer to a call that will get no reply: `error` is raised in the caller."""

    __slots__ = ("error",)

    def __init__(self, error: LlmosError) -> None:
        self.error = error


def mark_caller_gone(recipient: Process, message: int) -> None:
    """Mark the caller of `message` as gone. A late reply is then a dead letter, and no error of the recipient."""
    pending_calls = recipient.pending_calls
    if pending_calls is not None and message in pending_calls:
        pending_calls[message] = None
        if len(pending_calls) > LATE_REPLIES:
            del pending_calls[message]
