"""Processes and their threads: start, hold, rank, wait for, end and list them; their limits and their output.

Also the programs that they run.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ipc.errors import ErrorInfo
from ipc.messages import Log
from ipc.syscalls.base import Body, Count, Priority, Seconds, Syscall


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds; None is no bound. What goes over is `LimitExceeded`, named and counted.

    A call that goes over fails: `tokens` (read and written by models), `children` (alive at once), `memory_keys` and
    `memory_bytes` (private memory). Messages over the length of the `mailbox` wait or fail as in any full one. A
    process that goes over ends, with reason "limit": `cpu_seconds`, `wall_seconds`.
    """

    tokens: Count | None = None
    cpu_seconds: Seconds | None = None
    wall_seconds: Seconds | None = None
    children: Count | None = None
    mailbox: Annotated[int, Meta(ge=1)] | None = None
    memory_keys: Count | None = None
    memory_bytes: Count | None = None


class Usage(msgspec.Struct):
    """What a process has used: model tokens read and written, messages, system calls, processor time."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    calls: int = 0
    cpu_seconds: float = 0.0


class ProcessInfo(msgspec.Struct, frozen=True):
    """A row of the process table. `waits_for` says what a blocked process waits for; times are seconds."""

    pid: int
    parent: int
    program: str
    owner: str
    priority: int
    state: str
    waits_for: str
    threads: int
    mailbox: int
    age: float
    usage: Usage


class ExitStatus(msgspec.Struct, frozen=True):
    """How a process ended: `reason` is "done", "failed", "killed", "deadline", "linked" or "limit".

    One of `value` and `error` is set, and `error` says more.
    """

    pid: int
    program: str
    reason: str
    value: Any = None
    error: ErrorInfo | None = None
    usage: Usage = msgspec.field(default_factory=Usage)


class ProgramInfo(msgspec.Struct, frozen=True):
    """A program that can be run. `signature` is that of its coroutine without the context."""

    name: str
    summary: str
    signature: str
    source: str
    error: str = ""


class Spawn(Syscall, tag="spawn"):
    """Start `program` with `args` by name, and `positional` ones in order; answers the pid of the new process.

    `lenient`: arguments are texts, from a command line say, and become numbers where numbers are wanted.
    `program` is a known name or the path of a Python file. A child dies with its parent unless `detach`; `deadline`
    is seconds from now. `credit` > 0, from a client, makes its events flow back under the id of the request. It is
    registered as `name` and linked to its parent with `link`, before its first step. `limits`: no more than those of
    its parent. Errors: `NameTaken`, `LimitExceeded`,
    `UnknownProgram`, `BadArguments`, `AgentFailed` (the file cannot be loaded), `Busy`.
    """

    program: str
    args: dict[str, Any] = {}
    positional: tuple[Any, ...] = ()
    lenient: bool = False
    priority: Priority | None = None
    deadline: Seconds | None = None
    owner: str | None = None
    detach: bool = False
    credit: Count = 0
    name: str | None = None
    link: bool = False
    limits: Limits | None = None
    returns: ClassVar[Any] = int


class Wait(Syscall, tag="wait"):
    """Wait until process `pid` has ended; answers its `ExitStatus`. Errors: `UnknownProcess`, `TimedOut`."""

    pid: int
    timeout: Seconds | None = None
    returns: ClassVar[Any] = ExitStatus


class Kill(Syscall, tag="kill"):
    """End process `pid` and its children; answers when it is gone, a client when that is on disk. `UnknownProcess`.

    With `thread`, end that one alone; answers None when it is gone. Errors: `UnknownThread`, `InvalidCall`.
    """

    pid: int
    thread: str | None = None
    returns: ClassVar[Any] = ExitStatus | None


class Sleep(Syscall, tag="sleep"):
    """Do nothing for `seconds`."""

    seconds: Seconds


class Ps(Syscall, tag="ps"):
    """The process table, `limit` rows from pid `start` on; connections of clients only if `clients`."""

    start: Count = 0
    limit: Annotated[int, Meta(ge=1, le=100_000)] = 10_000
    clients: bool = False
    returns: ClassVar[Any] = list[ProcessInfo]


class Logs(Syscall, tag="logs"):
    """The log of process `pid`. With `credit` > 0, new lines follow as events until it ends. `UnknownProcess`."""

    pid: int
    credit: Count = 0
    returns: ClassVar[Any] = list[Log]


class Programs(Syscall, tag="programs"):
    """All programs that can be run."""

    returns: ClassVar[Any] = list[ProgramInfo]


class ThreadInfo(msgspec.Struct, frozen=True):
    """A thread. `path` says who started it: "0" is the first one, "0-2" the second one that that one started."""

    path: str
    name: str
    state: str
    waits_for: str
    priority: int
    cpu_seconds: float


class StartThread(Syscall, tag="start_thread"):
    """Run `coro` as one more thread of the caller; answers the thread. Errors: `InvalidCall`.

    Inside the daemon only, and in no union: a coroutine cannot be encoded.
    """

    coro: Any
    name: str | None = None
    returns: ClassVar[Any] = Any


class Threads(Syscall, tag="threads"):
    """The threads of process `pid`, oldest first. Errors: `UnknownProcess`."""

    pid: int
    returns: ClassVar[Any] = list[ThreadInfo]


class Suspend(Syscall, tag="suspend"):
    """Stop process `pid`, or one `thread` of it, at its next system call, and take its sequences off their slots.

    Errors: `UnknownProcess`, `UnknownThread`.
    """

    pid: int
    thread: str | None = None


class Resume(Syscall, tag="resume"):
    """Let what was suspended go on. A thread goes on when both it and its process may. Errors: as of `Suspend`."""

    pid: int
    thread: str | None = None


class Nice(Syscall, tag="nice"):
    """Set the priority of process `pid` with all its threads, or of one `thread`, to -20 (lowest) to 20; answers it.

    `relative`: change it by `priority`, kept within these bounds. Errors: `UnknownProcess`, `UnknownThread`.
    """

    pid: int
    priority: Annotated[int, Meta(ge=-40, le=40)]
    relative: bool = False
    thread: str | None = None
    returns: ClassVar[Any] = int


class Emit(Syscall, tag="emit"):
    """Hand `value` to whoever submitted the task; waits while they have not read what came before.

    Errors: `NotEncodable`, `FrameTooLarge`.
    """

    value: Body


class WriteLog(Syscall, tag="log"):
    """Add a line to the caller's log."""

    level: str
    event: str
    fields: dict[str, Any] = {}


ProcessCalls = Spawn | Wait | Kill | Sleep | Ps | Logs | Programs | Threads | Suspend | Resume | Nice | Emit | WriteLog
