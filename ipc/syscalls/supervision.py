"""Supervision: links, monitors, supervised children, and crash reports (after Erlang/OTP)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from ipc.errors import ErrorInfo
from ipc.messages import Log
from ipc.syscalls.base import Count, Integer, Priority, Seconds, Syscall
from ipc.syscalls.processes import ExitStatus, Usage

DOWN = "down"  # type of the message by which a monitor reports the end of a process

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
Restart = Literal["permanent", "transient", "temporary"]


class Down(msgspec.Struct, frozen=True):
    """Body of a message of type "down": the monitored process `pid` has ended. `ref` is the answer of `Monitor`.

    `reason` is that of `ExitStatus`, or "unknown" if the daemon no longer remembers the process.
    """

    ref: int
    pid: int
    program: str
    reason: str
    error: ErrorInfo | None = None


class Child(msgspec.Struct, frozen=True):
    """A supervised child. It starts with the same `args`, `name` (to register) and `priority` each time.

    `restart`: a "permanent" child is restarted after every end, a "transient" child after every end with a reason other
    than "done", and a "temporary" child never.
    """

    program: str
    args: dict[str, Any] = {}
    name: str | None = None
    restart: Restart = "permanent"
    priority: Priority | None = None


class Link(Syscall, tag="link"):
    """Link the caller and process `pid`: if one ends for any reason but "done", the other is ended, as "linked".

    Errors: `UnknownProcess`, `InvalidCall` (the caller itself, or the connection of a client).
    """

    pid: Integer


class Unlink(Syscall, tag="unlink"):
    """Undo `Link`. Without a link it has no effect."""

    pid: Integer


class Monitor(Syscall, tag="monitor"):
    """Report the end of process `pid` to the caller by a message of type "down"; answers the message's correlation id.

    The message has priority over all others, and fits even into a full mailbox. If the process has ended already, the
    message is sent immediately. Errors: `UnknownProcess` (it never existed), `InvalidCall` (the caller itself),
    `LimitExceeded` beyond 200,000 monitors.
    """

    pid: Integer
    returns: ClassVar[Any] = int


class Demonitor(Syscall, tag="demonitor"):
    """Undo `Monitor`, whose answer was `ref`. An unread message of this monitor is removed from the mailbox."""

    ref: Integer


class Supervise(Syscall, tag="supervise"):
    """Start `children` in order and restart those that end; answers their exit statuses when all have ended for good.

    `strategy` chooses which children restart when one ends (Erlang/OTP, "Supervisor Behaviour"): only that child
    ("one_for_one"), all children ("one_for_all"), or that child and those after it ("rest_for_one"). The children that
    restart with it are ended first, in reverse order; transient children that are done restart with it, too. The pause
    before a restart is `backoff` seconds; it doubles with each earlier restart within the last `within` seconds, up to
    `max_backoff`. Each pause is shortened by a random amount, up to half of it, so that supervisors whose children
    failed together do not restart them together.

    When the call returns or fails with an error, all children have ended. If the call is cancelled, it only begins to
    end them; the calling process cannot end before they have. Errors: those of `Spawn`, if the first start of a child
    fails; `TooManyRestarts`, if more than `max_restarts` restarts would be needed within `within` seconds;
    `InvalidCall`.
    """

    children: list[Child]
    strategy: Strategy = "one_for_one"
    max_restarts: Count = 3
    within: Annotated[float, Meta(gt=0, le=1e9)] = 5.0
    backoff: Seconds = 0.1
    max_backoff: Seconds = 5.0
    returns: ClassVar[Any] = list[ExitStatus]


class Received(msgspec.Struct, frozen=True):
    """A message that a process received, without its body. See `ipc.messages.Message`."""

    id: int
    type: str
    sender: int
    priority: int
    correlation: int


class CrashReport(msgspec.Struct, frozen=True):
    """A report on a process that failed at `time` (seconds since the epoch), `age` seconds after its start.

    `reason` is that of `ExitStatus`. `error.data` may contain a traceback. `messages`: the last messages that the
    process received, the oldest first. `unread`: the number of messages in its mailbox. `log`: the last 10 lines of its
    log.
    """

    time: float
    pid: int
    parent: int
    program: str
    owner: str
    reason: str
    error: ErrorInfo | None
    age: float
    usage: Usage
    messages: list[Received]
    unread: int
    log: list[Log]


class Crashes(Syscall, tag="crashes"):
    """Answers the reports on the last 100 processes that failed, the oldest first; with `pid`, only that process's."""

    pid: Integer | None = None
    returns: ClassVar[Any] = list[CrashReport]


SupervisionCalls = Link | Unlink | Monitor | Demonitor | Supervise | Crashes
