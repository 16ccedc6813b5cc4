"""The mailbox of a durable process: a message is in the journal as long as it is in the mailbox.

Made with the process, and used like any mailbox. The transaction that records a `Receive` also deletes the message,
because both changes are requested in one turn of the loop. The mailbox never waits for the disk itself.
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
    """`now` returns the time of the loop. Deadlines are in this time; the journal stores them since the epoch."""

    __slots__ = ("_commits", "_now", "_pid")

    def __init__(self, pid: int, commits: Commits, now: Callable[[], float]) -> None:
        super().__init__()
        self._pid = pid
        self._commits = commits
        self._now = now

    def put(self, message: Message) -> CommitReceipt:
        """Add `message`, and persist it. Raises `NotEncodable` if that is impossible, and adds nothing."""
        expires = None
        if message.deadline is not None and message.deadline != inf:
            expires = time.time() + message.deadline - self._now()
        envelope = encode(msgspec.structs.replace(message, deadline=None))
        row = PutMessage(self._pid, message.id, expires, envelope)
        ids = HighestIds(message=message.id if message.id < DERIVED else 0, pid=message.sender)
        super().put(message)
        return CommitReceipt(self._commits, self._commits.persist(row, ids))

    def restore(self, message: Message) -> None:
        """Add a message that a previous run of the daemon persisted."""
        super().put(message)

    def take(self) -> Message | None:
        message = super().take()
        if message is not None:
            self._commits.persist(DropMessage(self._pid, message.id))
        return message

    def discard(self, message: Message) -> None:
        super().discard(message)
        self._commits.persist(DropMessage(self._pid, message.id))
