"""Messages between processes, and the events of a task that its clients see.

The kernel creates both. Agents read messages, clients read events. A body from a socket stays encoded until an agent
receives it. The tags and the order of the fields are the wire format: they never change within a version of the
protocol, and those that journals store never change at all (see ipc/README.md).
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipc.errors import ErrorInfo


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message in a mailbox.

    `id`: a number, unique in a run of the daemon. `type`: a name that the sender chose, the topic of a
    publication, or "". `sender`, `recipient`: pids; sender 0 is the kernel. `priority`: -20 to 20, the most urgent;
    above 20 for messages of the kernel. `correlation`: equal to `id` if the sender waits for a reply; else a number
    that the sender chose, or 0. `deadline`: the loop time, in seconds, after which the message is void; None: never.
    """

    id: int
    type: str
    sender: int
    recipient: int
    priority: int
    correlation: int
    deadline: float | None
    body: Any


class Token(msgspec.Struct, frozen=True, tag="token", array_like=True):
    """The text of one or more tokens of a generation: number `call` of process `pid`."""

    text: str
    pid: int
    call: int


class Log(msgspec.Struct, frozen=True, tag="log", array_like=True):
    """A line in the log of a process, or several printed lines that a client gets at once.

    `time` is in seconds since the epoch.
    """

    pid: int
    time: float
    level: str
    event: str
    fields: dict[str, Any] = {}


class State(msgspec.Struct, frozen=True, tag="state", array_like=True):
    """The present activity of a task, in words, such as the load of a model or the wait for a slot."""

    pid: int
    state: str
    detail: str = ""


class Emitted(msgspec.Struct, frozen=True, tag="emitted", array_like=True):
    """A value that an agent passed to `ctx.emit`."""

    pid: int
    value: Any


class Result(msgspec.Struct, frozen=True, tag="result", array_like=True):
    """The task returned `value`. No event of the task follows."""

    pid: int
    value: Any


class Failed(msgspec.Struct, frozen=True, tag="failed", array_like=True):
    """The task ended with an error. No event of the task follows."""

    pid: int
    error: ErrorInfo


class Missed(msgspec.Struct, frozen=True, tag="missed", array_like=True):
    """Sent to a client that attached late: `events` earlier events are not retained (0: their number is unknown)."""

    pid: int
    events: int


class Restarted(msgspec.Struct, frozen=True, tag="restarted", array_like=True):
    """The daemon was restarted and runs the task again. All events of this attempt, number `attempt`, follow."""

    pid: int
    attempt: int


Event = Token | Log | State | Emitted | Result | Failed | Missed | Restarted
