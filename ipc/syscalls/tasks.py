"""Tasks: submit a program that the journal stores, attach to it later, list tasks, and back up the journal.

The id of a task stays valid when the daemon restarts. The pid is that of its process in this run of the daemon.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ipc.syscalls.base import Count, Syscall
from ipc.syscalls.processes import Spawn

Key = Annotated[str, Meta(min_length=1, max_length=200)]


class Submitted(msgspec.Struct, frozen=True, array_like=True):
    """A task that is on disk: its id, the pid of its process (0: none now), and its attempt, from 1."""

    id: str
    pid: int
    attempt: int = 1


class TaskInfo(msgspec.Struct, frozen=True):
    """A task in the journal. `state`: "accepted", "running", "ending", or how it ended (`ExitStatus.reason`).

    "ending": its process has ended, but the end is not on disk. Until it is, no client learns the result; if the daemon
    dies before, the task runs again. `submitted` and `ended` (0: not yet) are in seconds since the epoch. `error`: the
    name of its error, or "".
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
    """Submit a task: a `Spawn` that the journal stores. Answered, and started, when it is on disk. Clients only.

    A task that has not ended when the daemon dies runs again in the next run. With a `key`, a repeated submission of
    the same owner attaches to the task of the first one. `durable`: run the program as a durable agent, also if it is
    not marked so. Errors: those of `Spawn`; `JournalUnavailable`, such as for a full disk; `KeyReused`, if the key
    belongs to another program or other arguments.
    """

    key: Key | None = None
    durable: bool = False
    returns: ClassVar[Any] = Submitted


class Attach(Syscall, tag="attach"):
    """Follow the events and the result of task `id`. Clients only. Errors: `UnknownTask`, `ShuttingDown`.

    Without `after`, events follow from now on. With it, events of attempt `attempt` with a number above `after` follow;
    if the task is in another attempt now, the events of that one follow from its beginning. The daemon retains the last
    1,024 events, or 256 KiB, until the task ends; `Missed` replaces older ones.
    """

    id: str
    credit: Count = 0
    after: Count | None = None
    attempt: Count = 0
    returns: ClassVar[Any] = Submitted


class History(Syscall, tag="history"):
    """Answers the last `limit` tasks, the newest first; with `before`, the last ones before that task.

    Errors: `UnknownTask`.
    """

    limit: Annotated[int, Meta(ge=1, le=100_000)] = 100
    before: str | None = None
    returns: ClassVar[Any] = list[TaskInfo]


class Backup(Syscall, tag="backup"):
    """Copy the journal, while it is in use, to a new file at the absolute `path`; answers its size in bytes.

    The copy contains everything that was acknowledged before the call. Clients only. Errors: `BackupFailed`, `Busy`
    (another copy is being made), `JournalUnavailable`.
    """

    path: str
    returns: ClassVar[Any] = int


TaskCalls = Submit | Attach | History | Backup
