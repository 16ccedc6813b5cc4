"""Processes and their threads: spawn, wait, kill, suspend, resume, set priorities; their limits, logs and output.

Also the programs that processes run. Priorities go from -20 to 20, the most urgent.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ipc.errors import ErrorInfo
from ipc.messages import Log
from ipc.syscalls.base import Body, Count, Integer, Positive, Priority, Seconds, Syscall


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of a process; None is no limit.

    A call fails with `LimitExceeded` if it would exceed `tokens` (of prompts and replies), `children` (alive at the
    same time), `processes` (alive at the same time: the process and all its descendants, also detached ones), `depth`
    (generations of descendants; a detached one belongs to the generation of the process that spawned it), `memory_keys`
    or `memory_bytes` (of private memory). A process that exceeds `cpu_seconds` or `wall_seconds` is ended, with the
    reason "limit". `mailbox` and `mailbox_bytes` are the most messages and bytes in the mailbox; when it is full,
    senders wait, as for any full mailbox. Without limits of their own, a task has 150,000 processes and 64 generations,
    and a mailbox 1,000 messages and 64 MiB.

    `appended`: the number of last fields that later versions of llmosd added; see `Syscall.appended`.
    """

    appended: ClassVar[int] = 3

    tokens: Count | None = None
    cpu_seconds: Seconds | None = None
    wall_seconds: Seconds | None = None
    children: Count | None = None
    mailbox: Positive | None = None
    memory_keys: Count | None = None
    memory_bytes: Count | None = None
    processes: Positive | None = None
    depth: Count | None = None
    mailbox_bytes: Positive | None = None


class Usage(msgspec.Struct):
    """The usage of a process: tokens of prompts and replies, messages, system calls, processor time in seconds."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    calls: int = 0
    cpu_seconds: float = 0.0


class ProcessInfo(msgspec.Struct, frozen=True):
    """A row of the process table. `waits_for`: a description of the event that a waiting process waits for.

    `state`: "new", "ready", "running", "blocked", "suspended" or "zombie"; in a model call "generating", "loading" or
    "queued", with the tokens so far, the model, or the place in the queue in `waits_for`. It is the state of the most
    active thread.
    `threads` and `mailbox` are counts, `age` is in seconds. `parent` is 0 for a detached process.

    `task`: the id of a task that has not restarted and has no process, so that `pid` is 0. Its `state` is "held back"
    or "waiting", and its `waits_for` the reason. For a process it is empty.
    """

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
    task: str = ""


class ExitStatus(msgspec.Struct, frozen=True):
    """How a process ended. `reason`: "done", "failed", "killed", "deadline", "linked" or "limit".

    `value` is the result of a process that is done; any other end has an `error`.
    """

    pid: int
    program: str
    reason: str
    value: Any = None
    error: ErrorInfo | None = None
    usage: Usage = msgspec.field(default_factory=Usage)


class ParameterInfo(msgspec.Struct, frozen=True):
    """A parameter of a program. `type`: its annotation. `form`: the accepted form of its argument, in words.

    `default`: its default as Python code. `positional`: its argument can also be given by position.
    """

    name: str
    type: str
    form: str
    default: str
    required: bool
    positional: bool


class ProgramInfo(msgspec.Struct, frozen=True):
    """A program that can be run. `signature`: the parameters of its coroutine, without the context.

    `source`: its file or package. `error`: why the file cannot be loaded, or "". `warning`: which program of the same
    name hides this one, and how to run this one, or "". Only `DescribeProgram` fills `doc`, the docstring of the
    coroutine, and `parameters`.
    """

    name: str
    summary: str
    signature: str
    source: str
    error: str = ""
    warning: str = ""
    doc: str = ""
    parameters: list[ParameterInfo] = []


class Spawn(Syscall, tag="spawn"):
    """Start a process; answers its pid. The process is a child of the caller, and ends with it unless `detach`.

    `program`: the name of an agent in the caller's own file, a known name, the path of a Python file, `FILE.py:AGENT`,
    or `MODULE:AGENT` for a module beside the caller's file or an installed one. `args`: arguments by name.
    `positional`: arguments in order. With `lenient`, each text is parsed by the type of its parameter, as on a command
    line. `priority` and `owner` default to those of the caller. `deadline`: seconds from now after which the process is
    ended. `name`: a name to register for the process. `link`: link the process to the caller. Name and link exist
    before the process runs. `limits`: if the caller is an agent, only limits below its own take effect; if the caller
    is a client, each limit replaces the configured limit of a process. `credit`: the number of events that the daemon
    may send to the client under the id of the request.

    Errors: `UnknownProgram`, `BadArguments`, `AgentFailed` (the file cannot be loaded), `NameTaken`, `LimitExceeded`,
    `NotEncodable`, `InvalidCall`, `Busy` (too many processes), `Killed` (the caller or an ancestor ends); from a client
    also `ShuttingDown`.
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
    """Wait until process `pid` has ended; answers its `ExitStatus`. The daemon remembers the last 512 ended processes.

    For a process that has not waited for its children, it remembers more: in all 100,000 outcomes, or 128 MiB of them.
    Errors: `UnknownProcess`, and its subclass `OutcomeForgotten` if `pid` has ended and is no longer remembered;
    `TimedOut` after `timeout` seconds; `DeadlockDetected`; `InvalidCall` (the caller itself).
    """

    pid: Integer
    timeout: Seconds | None = None
    returns: ClassVar[Any] = ExitStatus


class Kill(Syscall, tag="kill"):
    """End process `pid` and its children; answers its `ExitStatus` when it has ended.

    If the caller is a client, the answer also waits until the end is on disk. The threads of the process are cancelled,
    and have 2 seconds for their `finally` blocks, even while they are suspended. With `thread`, the path of a thread,
    only that thread ends, and the answer is None. Errors: `UnknownProcess`, `UnknownThread`, `InvalidCall` (the first
    thread of a process, or the calling thread).
    """

    pid: Integer
    thread: str | None = None
    returns: ClassVar[Any] = ExitStatus | None


class Sleep(Syscall, tag="sleep"):
    """Wait for `seconds`. Errors: `InvalidCall`."""

    seconds: Seconds


class Ps(Syscall, tag="ps"):
    """Answers up to `limit` rows of the process table, from pid `start` on; with `clients`, also connections.

    With `tasks`, if `start` is 0, the rows of tasks that have not restarted come first, at most half a page of them.
    One answer has at most a page of rows. The pid of its last row, plus 1, is the `start` of the next page.
    """

    start: Count = 0
    limit: Annotated[int, Meta(ge=1, le=100_000)] = 10_000
    clients: bool = False
    tasks: bool = False
    page: ClassVar[int] = 1_000
    returns: ClassVar[Any] = list[ProcessInfo]


class Logs(Syscall, tag="logs"):
    """Answers the last 200 lines of the log of process `pid`. Errors: `UnknownProcess`.

    With `credit` above 0, new lines follow as events until the process ends.
    """

    pid: Integer
    credit: Count = 0
    returns: ClassVar[Any] = list[Log]


class Programs(Syscall, tag="programs"):
    """Answers the programs that can be run, sorted by name: one page, without the first `start` ones.

    Without `start`, it answers all. Errors: `LimitExceeded` if these are more than a page.
    """

    start: Count | None = None
    page: ClassVar[int] = 150
    returns: ClassVar[Any] = list[ProgramInfo]


class DescribeProgram(Syscall, tag="describe_program"):
    """Answers the `ProgramInfo` of `program`, a known name or the path of a Python file, with its parameters.

    Errors: `UnknownProgram`, `AgentFailed` (the file cannot be loaded).
    """

    program: str
    returns: ClassVar[Any] = ProgramInfo


class ThreadInfo(msgspec.Struct, frozen=True):
    """A thread. Its `path` is "0" for the first thread; "0-2" is the second thread that thread "0" started."""

    path: str
    name: str
    state: str
    waits_for: str
    priority: int
    cpu_seconds: float


class StartThread(Syscall, tag="start_thread"):
    """Run the coroutine `coro` as a further thread of the caller; answers the thread.

    Errors: `InvalidCall`, and `LimitExceeded` beyond 100,000 threads. A task of asyncio that an agent makes is such a
    thread, too, and counts.
    Inside the daemon only. It is in no union, because a coroutine cannot be encoded.
    """

    coro: Any
    name: str | None = None
    returns: ClassVar[Any] = Any


class Threads(Syscall, tag="threads"):
    """Answers the threads of process `pid`, the oldest first: one page, without the first `start` ones.

    Without `start`, it answers all. Errors: `UnknownProcess`; `LimitExceeded` if these are more than a page.
    """

    pid: Integer
    start: Count | None = None
    page: ClassVar[int] = 2_000
    returns: ClassVar[Any] = list[ThreadInfo]


class Suspend(Syscall, tag="suspend"):
    """Suspend process `pid`, or one `thread` of it.

    Suspended threads stop at their next `await`, and their sequences leave their slots. A second suspension has no
    further effect. Errors: `UnknownProcess`, `UnknownThread`, `InvalidCall` (the connection
    of a client).
    """

    pid: Integer
    thread: str | None = None


class Resume(Syscall, tag="resume"):
    """Undo `Suspend`. A thread runs only when neither it nor its process is suspended.

    Errors: `UnknownProcess`, `UnknownThread`.
    """

    pid: Integer
    thread: str | None = None


class Nice(Syscall, tag="nice"):
    """Set the priority of process `pid` and all its threads, or of one `thread`; answers the new priority.

    With `relative`, `priority` is added to the present priority, and the sum is limited to the range -20 to 20. Errors:
    `UnknownProcess`, `UnknownThread`, `InvalidCall`.
    """

    pid: Integer
    priority: Annotated[int, Meta(ge=-40, le=40)]
    relative: bool = False
    thread: str | None = None
    returns: ClassVar[Any] = int


class Emit(Syscall, tag="emit"):
    """Send `value` to the client that submitted the task, as an `Emitted` event.

    The call waits while too many events wait for that client. If no client is attached, the value is dropped. Errors:
    `NotEncodable`, `FrameTooLarge`.
    """

    value: Body


class WriteLog(Syscall, tag="log"):
    """Add a line to the caller's log, which holds the last 200 lines.

    The text has at most 1,000,000 characters, and the encoded fields as many bytes. Errors: `InvalidCall`,
    `NotEncodable`, `FrameTooLarge`.
    """

    level: str
    event: str
    fields: dict[str, Any] = {}


ProcessCalls = (
    Spawn
    | Wait
    | Kill
    | Sleep
    | Ps
    | Logs
    | Programs
    | DescribeProgram
    | Threads
    | Suspend
    | Resume
    | Nice
    | Emit
    | WriteLog
)
