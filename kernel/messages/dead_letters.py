"""Dead letters: the last messages that nobody received, each with the reason.

The modules of this room add dead letters, and `llmos deadletters` shows them. A dead letter never has a body, only the
heading of the message.
"""

from __future__ import annotations

import time
from collections import Counter, deque

import structlog

from ipc.messages import Message
from ipc.syscalls import DeadLetter, Heading
from kernel.core.process import Process
from kernel.lib.pages import shortened
from kernel.messages.body_size import size

CAPACITY = 1000

log = structlog.get_logger("kernel.messages")


class DeadLetterQueue:
    """The last `CAPACITY` dead letters. `counts` counts by reason all dead letters since the daemon started."""

    def __init__(self) -> None:
        self._ring: deque[DeadLetter] = deque(maxlen=CAPACITY)
        self.counts: Counter[str] = Counter()

    def bury(self, message: Message, reason: str) -> None:
        """Make `message` a dead letter."""
        self.counts[reason] += 1
        self._ring.append(DeadLetter(heading(message), reason, time.time()))
        log.debug("dead letter", reason=reason, sender=message.sender, recipient=message.recipient, type=message.type)

    def expire(self, recipient: Process, message: Message) -> None:
        """Bury `message`, whose deadline has passed. If it is a call, `recipient` no longer has to answer it."""
        self.bury(message, "its deadline passed")
        if recipient.pending_calls:
            recipient.pending_calls.pop(message.id, None)

    def __len__(self) -> int:
        return self.counts.total()

    def listing(self) -> list[DeadLetter]:
        return list(self._ring)


def heading(message: Message) -> Heading:
    """`message` without its body, and with its type cut short, for a listing."""
    return Heading(
        message.id,
        shortened(message.type),
        message.sender,
        message.recipient,
        message.priority,
        message.correlation,
        size(message.body),
    )
