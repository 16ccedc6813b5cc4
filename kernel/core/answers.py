"""Answers to calls: what stands in `Thread.answer` of a caller that waits, and what is left of one that gave up.

Used by messages and by the messages of durable processes, which lay an answer into the thread. It wakes nobody.
"""

from __future__ import annotations

from ipc.errors import LlmosError
from kernel.core.process import Process

LATE_REPLIES = 1000  # calls that timed out and may still be answered, remembered per process

UNANSWERED = object()  # stands in `Thread.answer` of a caller that waits


class Unanswerable:
    """The answer to a call that will get none: `error` says why."""

    __slots__ = ("error",)

    def __init__(self, error: LlmosError) -> None:
        self.error = error


def forget_caller(recipient: Process, message: int) -> None:
    """Nobody waits for the reply to `message` any more; when it comes, it is a dead letter and no error."""
    pending_calls = recipient.pending_calls
    if pending_calls is not None and message in pending_calls:
        pending_calls[message] = None
        if len(pending_calls) > LATE_REPLIES:
            del pending_calls[message]
