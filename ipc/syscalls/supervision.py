"""Supervision: links, monitors, supervised children, and the reports of crashes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from ipc.errors import ErrorInfo
from ipc.messages import Log
from ipc.syscalls.base import Count, Priority, Seconds, Syscall
from ipc.syscalls.processes import ExitStatus, Usage

DOWN = "down"  # type of the message that a monitor gets

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
Restart = Literal["permanent", "transient", "temporary"]


class Down(msgspec.Struct, frozen=True):
    """Body of the message of type "down": the monitored process `pid` has ended. `ref` is what `monitor` answered.

    `reason` is as in `ExitStatus`, or "unknown" if it ended too long ago to be remembered.
    """

    ref: int
    pid: int
    program: str
    reason: str
    error: ErrorInfo | None = None


class Child(msgspec.Struct, frozen=True):
    """A supervised child: started with `args`, registered under `name` if given, at each start anew.

    `restart`: "permanent" whenever it ends, "transient" unless it ends well, "temporary" never.
    """

    program: str
    args: dict[str, Any] = {}
    name: str | None = None
    restart: Restart = "permanent"
    priority: Priority | None = None


class Link(Syscall, tag="link"):
    """Tie the fates of the caller and process `pid`: if one ends other than well, so does the other ("linked").

    Errors: `UnknownProcess`, `InvalidCall` (itself, or the connection of a client).
    """

    pid: int


class Unlink(Syscall, tag="unlink"):
    """Undo `Link`; nothing if there is none."""

    pid: int


class Monitor(Syscall, tag="monitor"):
    """Tell the caller of the end of process `pid` by a message of type "down"; answers its correlation id.

    The message is above all others and never dropped. If the process has ended already, it comes at once.
    Errors: `UnknownProcess` (it never existed), `InvalidCall` (itself).
    """

    pid: int
    returns: ClassVar[Any] = int


class Demonitor(Syscall, tag="demonitor"):
    """Undo `Monitor`: no message of it comes any more, one that waits unread is taken back."""

    ref: int


class Supervise(Syscall, tag="supervise"):
    """Start `children` in order and restart those that end, until all have ended for good; answers how they ended.

    After `strategy`, with a child are restarted: itself, all, or itself and those after it (Erlang/OTP, "Supervisor
    Behaviour"). The others are ended in reverse order first. A restart waits `backoff` seconds, twice as long with
    each that follows within `within` seconds, at most `max_backoff`; and half of that by chance, so that those
    who failed together do not come back together. Errors: what `Spawn` raises when a child cannot be started the first
    time; `TooManyRestarts` after more than `max_restarts` within `within` seconds, when all have been ended.
    """

    children: list[Child]
    strategy: Strategy = "one_for_one"
    max_restarts: Count = 3
    within: Annotated[float, Meta(gt=0, le=1e9)] = 5.0
    backoff: Seconds = 0.1
    max_backoff: Seconds = 5.0
    returns: ClassVar[Any] = list[ExitStatus]


class Received(msgspec.Struct, frozen=True):
    """A message that a process had received, without its body."""

    id: int
    type: str
    sender: int
    priority: int
    correlation: int


class CrashReport(msgspec.Struct, frozen=True):
    """What is known of a process that failed. `error.data` may hold its traceback; `time` is seconds since the epoch.

    `messages` are the last that it received, oldest first; `unread` is how many more lay in its mailbox; `log` is the
    end of its log.
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
    """The reports of the last 100 processes that failed, oldest first; of process `pid` alone if given."""

    pid: int | None = None
    returns: ClassVar[Any] = list[CrashReport]


SupervisionCalls = Link | Unlink | Monitor | Demonitor | Supervise | Crashes
