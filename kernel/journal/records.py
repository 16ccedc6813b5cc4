"""The records of tasks: what goes into the journal and what comes out of it.

The loop and the journal's thread pass them to each other. They know what an idempotency key means for a task that comes
twice, and touch neither the file nor any table of the kernel.
"""

from __future__ import annotations

import msgspec

from ipc.codec import decode
from ipc.errors import KeyReused, MalformedFrame
from ipc.syscalls import Submit


class Accepted(msgspec.Struct):
    """A task that is to be kept. `call` is the msgpack of its `Submit`; `id` is 0 until the journal gives it one.

    `pid` is not 0 if its first process is durable, and `version` then that of its code.
    """

    program: str
    owner: str
    key: str | None
    call: bytes
    submitted: float
    id: int = 0
    attempt: int = 1
    pid: int = 0
    version: str = ""

    def is_same_work(self, call: bytes) -> bool:
        """Whether `call`, the msgpack of another `Submit`, asks for the same program with the same arguments.

        A row that cannot be decoded is other work.
        """
        try:
            ours, theirs = decode(self.call, Submit), decode(call, Submit)
        except MalformedFrame:
            return False
        return (ours.program, ours.args, ours.positional) == (theirs.program, theirs.args, theirs.positional)

    def reused(self) -> KeyReused:
        """The error for a key that belongs to other work."""
        return KeyReused(
            f"key {self.key!r} of owner {self.owner!r} belongs to a task with another program or other arguments; "
            "use a new key for new work",
            key=self.key,
        )

    def kept(self) -> TaskRow:
        """The task as it stands in the journal now that it is accepted."""
        return TaskRow(self.id, self.program, self.owner, self.submitted, self.attempt, None, "", "", b"")


class TaskEnd(msgspec.Struct, frozen=True):
    """How a task ended. `outcome` is the msgpack of its last event."""

    id: int
    ended: float
    reason: str
    error: str
    outcome: bytes


class TaskRow(msgspec.Struct, frozen=True):
    """A task as it stands in the journal. `ended` is None, and `outcome` empty, until it has ended."""

    id: int
    program: str
    owner: str
    submitted: float
    attempt: int
    ended: float | None
    reason: str
    error: str
    outcome: bytes
