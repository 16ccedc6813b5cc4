"""The manual of system calls: each a Struct, all of them in one tagged union, with the type of its answer.

Made by agents (in the loop, never encoded) and by clients (over a socket). The kernel handles each in one subsystem.
The answer's type is the class attribute `returns`; errors that a call can raise are named in its docstring, besides
those of the gate: `ShuttingDown`, `NotPermitted`, `Killed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ipc.errors import ErrorInfo
from ipc.messages import Log, Message

# A body from a socket stays encoded until its receiver reads it; one from the loop is any value.
if TYPE_CHECKING:
    Body = Any
else:
    Body = msgspec.Raw

Priority = Annotated[int, Meta(ge=-20, le=20)]
Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]


class Syscall(msgspec.Struct, array_like=True, tag_field="call"):
    """Common to all system calls. `returns` is the type of the answer."""

    returns: ClassVar[Any] = None


# ---- what the calls carry and answer


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose tokens. None leaves the daemon's default.

    `temperature` 0 is greedy. `top_k` keeps the k likeliest tokens, `top_p` the likeliest that sum to p. The noise of
    a draw is a function of (`seed`, position) alone. Text ends before the first of the `stop` strings.
    """

    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: tuple[Annotated[str, Meta(min_length=1)], ...] = ()


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
    """How a process ended: `reason` is "done", "failed", "killed" or "deadline"; one of `value` and `error` is set."""

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


class ModelInfo(msgspec.Struct, frozen=True):
    """A configured model. `state`: "unloaded", "loading", "ready", "restarting" or "failed"; `detail` says more."""

    name: str
    driver: str
    path: str
    default: bool
    state: str
    detail: str
    context: int | None
    facts: dict[str, Any]


class SlotInfo(msgspec.Struct, frozen=True):
    """The slots of one model: how many there are, hold a sequence, and how many calls queue for one.

    `tokens_per_second` is the rate of the last steps, `restarts` counts driver deaths survived, `memory` is the
    driver's resident set in bytes.
    """

    model: str
    state: str
    detail: str
    driver_pid: int | None
    slots: int
    used: int
    queued: int
    tokens: int
    tokens_per_second: float
    steps: int
    restarts: int
    memory: int
    sequences: list[SequenceInfo]


class SequenceInfo(msgspec.Struct, frozen=True):
    """One sequence: who runs it, how far it is, what is left of its lease, and its place in the queue (0: none)."""

    sequence: int
    pid: int
    program: str
    state: str
    position: int
    prompt_tokens: int
    generated_tokens: int
    lease: int


class Stats(msgspec.Struct, frozen=True):
    """Counters since the start, and the machine as it is now (bytes, seconds, shares of 1)."""

    version: str
    pid: int
    uptime: float
    processes: int
    threads: int
    connections: int
    exited: dict[str, int]
    calls: dict[str, int]
    errors: dict[str, int]
    dead_letters: int
    memory: int
    cpu_seconds: float
    machine: dict[str, float]


class Pong(msgspec.Struct, frozen=True, array_like=True):
    """The answer to `Ping`."""

    payload: Any


# ---- processes


class Spawn(Syscall, tag="spawn"):
    """Start `program` with `args` by name, and `positional` ones in order; answers the pid of the new process.

    `lenient`: arguments are texts, from a command line say, and become numbers where numbers are wanted.
    `program` is a known name or the path of a Python file. A child dies with its parent unless `detach`; `deadline`
    is seconds from now. `credit` > 0, from a client, makes its events flow back under the id of the request. Errors:
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
    returns: ClassVar[Any] = int


class Wait(Syscall, tag="wait"):
    """Wait until process `pid` has ended; answers its `ExitStatus`. Errors: `UnknownProcess`, `TimedOut`."""

    pid: int
    timeout: Seconds | None = None
    returns: ClassVar[Any] = ExitStatus


class Kill(Syscall, tag="kill"):
    """End process `pid` and its children; answers when it is gone. Errors: `UnknownProcess`."""

    pid: int
    returns: ClassVar[Any] = ExitStatus


class Suspend(Syscall, tag="suspend"):
    """Stop process `pid` at its next system call and take its sequences off their slots. Errors: `UnknownProcess`."""

    pid: int


class Resume(Syscall, tag="resume"):
    """Let a suspended process go on. Errors: `UnknownProcess`."""

    pid: int


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


# ---- messages


class Send(Syscall, tag="send"):
    """Put a message into the mailbox of `to`; answers its id.

    If the mailbox is full, waits when `wait`, else fails. `lifetime`: seconds after which the message is void.
    Errors: `UnknownProcess`, `MailboxFull`, `NotEncodable`.
    """

    to: int
    body: Body
    type: str = ""
    priority: Priority = 0
    wait: bool = True
    lifetime: Seconds | None = None
    returns: ClassVar[Any] = int


class Receive(Syscall, tag="receive"):
    """Take the most urgent message from the caller's own mailbox, waiting for one. Errors: `TimedOut`."""

    timeout: Seconds | None = None
    returns: ClassVar[Any] = Message


class Call(Syscall, tag="call"):
    """Send to `to` and wait for the reply's body. Errors: as `Send`; `TimedOut`; `UnknownProcess` when `to` ends."""

    to: int
    body: Body
    timeout: Seconds | None = None
    type: str = ""
    priority: Priority = 0


class Reply(Syscall, tag="reply"):
    """Reply to a message that came by a call: `to` and `correlation` are the message's. Errors: `NotACall`.

    `to` is gone or no longer waits: the reply becomes a dead letter, and the call answers normally.
    """

    to: int
    correlation: int
    body: Body


# ---- models


class Generate(Syscall, tag="generate"):
    """Run a model on `prompt` (chat messages or text to continue); answers the text.

    With `emit`, tokens also go to whoever submitted the task. Errors: `UnknownModel`, `ModelNotFound`,
    `MissingExtra`, `ModelLoadFailed`, `ContextOverflow`, `InvalidPrompt`, `DriverFailed`, `Busy`.
    """

    prompt: list[ChatMessage] | str
    model: str | None = None
    sampling: Sampling = Sampling()
    emit: bool = True
    returns: ClassVar[Any] = str


class Models(Syscall, tag="models"):
    """The configured models."""

    returns: ClassVar[Any] = list[ModelInfo]


class Slots(Syscall, tag="slots"):
    """The slots of every model that was asked for."""

    returns: ClassVar[Any] = list[SlotInfo]


# ---- output and the rest


class Emit(Syscall, tag="emit"):
    """Hand `value` to whoever submitted the task; waits while they have not read what came before. `NotEncodable`."""

    value: Body


class WriteLog(Syscall, tag="log"):
    """Add a line to the caller's log."""

    level: str
    event: str
    fields: dict[str, Any] = {}


class Sleep(Syscall, tag="sleep"):
    """Do nothing for `seconds`."""

    seconds: Seconds


class Ping(Syscall, tag="ping"):
    """Answers the payload."""

    payload: Body = msgspec.Raw(b"\xc0")
    returns: ClassVar[Any] = Pong


class GetStats(Syscall, tag="stats"):
    """Counters of the daemon and the state of the machine."""

    returns: ClassVar[Any] = Stats


class Shutdown(Syscall, tag="shutdown"):
    """Stop the daemon: drain first, or end all processes at once with `now`. Clients only."""

    now: bool = False


SystemCall = (
    Spawn
    | Wait
    | Kill
    | Suspend
    | Resume
    | Ps
    | Logs
    | Programs
    | Send
    | Receive
    | Call
    | Reply
    | Generate
    | Models
    | Slots
    | Emit
    | WriteLog
    | Sleep
    | Ping
    | GetStats
    | Shutdown
)
