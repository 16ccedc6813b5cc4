"""Tasks: submit a program that the journal stores, attach to it later, list tasks, and back up the journal.

The id of a task stays valid when the daemon restarts. Its pid is valid for this run of the daemon, or, for a durable
task, in every run.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ipc.syscalls.base import Count, Syscall
from ipc.syscalls.processes import Spawn

Key = Annotated[str, Meta(min_length=1, max_length=200)]


class Submitted(msgspec.Struct, frozen=True, array_like=True):
    """A task that is on disk: its id, the pid of its process (0: it has none now), and its attempt, from 1."""

    id: str
    pid: int
    attempt: int = 1


class TaskInfo(msgspec.Struct, frozen=True):
    """A task in the journal.

    `state`: "accepted", "held back", "waiting", "running", "ending", or how it ended (`ExitStatus.reason`).

    "held back": the daemon died several times in a row, and this task waits until others have run for a while.
    "waiting": it cannot restart in this run of the daemon yet, mostly because its program cannot be loaded; it restarts
    when the program can. `waits_for` says why it is held back or waits; for any other task it is empty.
    "ending": its process has ended, but the end is not on disk yet. No client learns the result before the end is on
    disk, and if the daemon dies before, the task runs again. `submitted` and `ended` (0: not yet) are in seconds since
    the epoch. `error`: the name of its error, or "".

    `pid` is 0 if the task has no process now. `last_pid` is the pid of its process also after the end; 0: it never had
    one. `arguments` and `result` are short texts for people: cut to 120 characters, in a long list to fewer, and empty
    if there are none.
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
    last_pid: int = 0
    arguments: str = ""
    result: str = ""
    waits_for: str = ""


class Submit(Spawn, tag="submit"):
    """Submit a task: a `Spawn` that the journal stores. Clients only.

    When the task is on disk, it starts, and the call is answered. If the daemon dies before the task has ended, the
    next run of the daemon runs the task again. If the same owner submits again with the same `key`, the call attaches
    to the first task instead of a new one. `durable`: run the program as a durable agent, even if it is not marked as
    one. Errors: those of `Spawn`; `JournalUnavailable`, such as for a full disk; `KeyReused`, if the task with the key
    has another program or other arguments.
    """

    key: Key | None = None
    durable: bool = False
    returns: ClassVar[Any] = Submitted


class Attach(Syscall, tag="attach"):
    """Follow the events and the result of task `id`. Clients only. Errors: `UnknownTask`, `ShuttingDown`.

    Without `after`, the client gets the events from now on. With `after`, it gets the events of attempt `attempt` with
    a number above `after`; if the task is in another attempt now, the client gets all events of that attempt. Until the
    task ends, the daemon retains its last events: at most 1,024, and at most 256 KiB. `Missed` replaces older events.
    """

    id: str
    credit: Count = 0
    after: Count | None = None
    attempt: Count = 0
    returns: ClassVar[Any] = Submitted


class KillTask(Syscall, tag="kill_task"):
    """End task `id`, even if it has no process yet; answers how it ended. Clients only. Errors: `UnknownTask`.

    As for `Kill`, the answer waits until the end is on disk. The answer is `ExitStatus.reason`: "killed", or how the
    task had ended before.
    """

    id: str
    returns: ClassVar[Any] = str


class History(Syscall, tag="history"):
    """Answers the last `limit` tasks, the newest first; with `before`, the last ones that are older than that task.

    One answer has at most a page of rows. The id of its last row is the `before` of the next page. Errors:
    `UnknownTask`.
    """

    limit: Annotated[int, Meta(ge=1, le=100_000)] = 100
    before: str | None = None
    page: ClassVar[int] = 2_000
    returns: ClassVar[Any] = list[TaskInfo]


class Backup(Syscall, tag="backup"):
    """Copy the journal, while it is in use, to a new file at the absolute `path`; answers its size in bytes.

    The copy contains everything that was acknowledged before the call. Clients only. Errors: `BackupFailed`, `Busy`
    (another copy is being made), `JournalUnavailable`.
    """

    path: str
    returns: ClassVar[Any] = int


TaskCalls = Submit | Attach | KillTask | History | Backup
