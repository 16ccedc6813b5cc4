"""Tasks: what clients submit, which the journal keeps; to find them again, and to look at those that were.

A task is told apart by its id, which lasts over restarts of the daemon; the pid is that of its present life.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ipc.syscalls.base import Count, Syscall
from ipc.syscalls.processes import Spawn

Key = Annotated[str, Meta(min_length=1, max_length=200)]


class Submitted(msgspec.Struct, frozen=True, array_like=True):
    """A task that is on disk: its lasting id, the pid of its process (0 while it has none), and which attempt it is."""

    id: str
    pid: int
    attempt: int = 1


class TaskInfo(msgspec.Struct, frozen=True):
    """A task of the journal. `state` is "accepted", "running", "ending", or how it ended, as in `ExitStatus.reason`.

    "ending": its process has ended, and nobody is told how before that is on the disk, which takes nothing now. If the
    daemon dies first, the task runs again.
    `submitted` and `ended` (0: not yet) are seconds since the epoch; `error` is the name of its error, if it has one.
    """

    id: str
    pid: int
    program: str
    owner: str
    state: str
    attempt: int
    submitted: float
    ended: float
    error: str


class Submit(Spawn, tag="submit"):
    """`Spawn` of a task that outlives the daemon: it is answered, and begun, once it is on disk.

    The same `key` of the same owner is the same task, which is then attached to. `durable`: run the program as if it
    were marked durable. Clients only. Errors: those of
    `Spawn`, `JournalUnavailable` (the disk is full, say), `KeyReused` (with another program or other arguments).
    """

    key: Key | None = None
    durable: bool = False
    returns: ClassVar[Any] = Submitted


class Attach(Syscall, tag="attach"):
    """The events and the result of task `id`. Clients only. Errors: `UnknownTask`.

    Without `after`: events from now on. With it: those of attempt `attempt` with a higher number, or, if the task is at
    another attempt by now, those of that one from its beginning. A bounded number of them is kept until the task ends;
    if more were lost, the first event is `Missed`.
    """

    id: str
    credit: Count = 0
    after: Count | None = None
    attempt: Count = 0
    returns: ClassVar[Any] = Submitted


class History(Syscall, tag="history"):
    """The last `limit` tasks, newest first, of those before task `before` (None: of all). Errors: `UnknownTask`."""

    limit: Annotated[int, Meta(ge=1, le=100_000)] = 100
    before: str | None = None
    returns: ClassVar[Any] = list[TaskInfo]


class Backup(Syscall, tag="backup"):
    """Copy the journal, while it is in use, to a new file at `path`, which is absolute; its size in bytes.

    What was acknowledged before the call is in it. Clients only. Errors: `BackupFailed`, `JournalUnavailable`.
    """

    path: str
    returns: ClassVar[Any] = int


TaskCalls = Submit | Attach | History | Backup
