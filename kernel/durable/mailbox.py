"""The mailbox of a durable process: each message is in the journal as long as it waits.

It is the mailbox of any process, and tells the journal what comes and goes. What is taken is gone from the journal in
the transaction that holds the call which took it, as both are asked for in one turn of the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf

import msgspec

from ipc.codec import encode
from ipc.messages import Message
from kernel.core.mailbox import Mailbox
from kernel.durable.commits import CommitReceipt, Commits
from kernel.durable.history import DERIVED
from kernel.journal.changes import DropMessage, HighestIds, PutMessage


class DurableMailbox(Mailbox):
    """`now` is the time of the loop, by which the deadlines of messages go."""

    __slots__ = ("_commits", "_now", "_pid")

    def __init__(self, pid: int, capacity: int, commits: Commits, now: Callable[[], float]) -> None:
        super().__init__(capacity)
        self._pid = pid
        self._commits = commits
        self._now = now

    def put(self, message: Message) -> CommitReceipt:
        """Add `message`, and have it kept. Raises `NotEncodable`, and has then added nothing."""
        expires = None
        if message.deadline is not None and message.deadline != inf:
            expires = time.time() + message.deadline - self._now()
        envelope = encode(msgspec.structs.replace(message, deadline=None))
        kept = [PutMessage(self._pid, message.id, expires, envelope)]
        counted = HighestIds(message=message.id if message.id < DERIVED else 0, pid=message.sender)
        super().put(message)
        return CommitReceipt(self._commits, self._commits.keep(*kept, counted))

    def restore(self, message: Message) -> None:
        """Add a message that an earlier life kept."""
        super().put(message)

    def take(self) -> Message | None:
        message = super().take()
        if message is not None:
            self._commits.keep(DropMessage(self._pid, message.id))
        return message

    def discard(self, message: Message) -> None:
        super().discard(message)
        self._commits.keep(DropMessage(self._pid, message.id))
