"""Dead letters: the last messages that nobody received, and why.

Written by the message subsystem and what stands beside it, read by `llmos deadletters`. It keeps headings, not bodies.
"""

from __future__ import annotations

import time
from collections import Counter, deque

import msgspec
import structlog

from ipc.messages import Message
from ipc.syscalls import DeadLetter, Heading
from kernel.core.process import Process

KEPT = 1000

log = structlog.get_logger("kernel.messages")


class DeadLetterQueue:
    """A ring of them, and their count since the start, by reason."""

    def __init__(self) -> None:
        self._ring: deque[DeadLetter] = deque(maxlen=KEPT)
        self.counts: Counter[str] = Counter()

    def bury(self, message: Message, reason: str) -> None:
        self.counts[reason] += 1
        self._ring.append(DeadLetter(heading(message), reason, time.time()))
        log.debug("dead letter", reason=reason, sender=message.sender, recipient=message.recipient, type=message.type)

    def expire(self, recipient: Process, message: Message) -> None:
        """The deadline of `message` has passed. Nobody will reply to it if it came by a call."""
        self.bury(message, "its deadline passed")
        if recipient.pending_calls:
            recipient.pending_calls.pop(message.id, None)

    def __len__(self) -> int:
        return self.counts.total()

    def listing(self) -> list[DeadLetter]:
        return list(self._ring)


def heading(message: Message) -> Heading:
    """What may be told about `message` without its body."""
    return Heading(
        message.id,
        message.type,
        message.sender,
        message.recipient,
        message.priority,
        message.correlation,
        size(message.body),
    )


def size(body: object) -> int:
    """Bytes of the encoded body. For what is passed by reference, its own length where it has one, else 0."""
    if isinstance(body, str):
        return len(body.encode())
    return memoryview(body).nbytes if isinstance(body, bytes | msgspec.Raw) else 0
