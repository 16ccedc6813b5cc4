"""Messages between processes, and the events of a task that its submitter sees.

The kernel makes them; agents and clients read them. A body from a socket stays encoded until an agent receives it. The
tags and the order of the fields are the wire format, and never change within a version of the protocol.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipc.errors import ErrorInfo


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message in a mailbox.

    `id`: number of the message, unique in a run of the daemon. `type`: a name that the sender chose, the topic of a
    publication, or "". `sender`, `recipient`: pids; sender 0 is the kernel. `priority`: -20 to 20, the most urgent;
    above 20 for messages of the kernel. `correlation`: equal to `id` if the sender waits for a reply, else a number
    that the sender chose, or 0. `deadline`: loop time in seconds after which the message is void, or None.
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
    """Text of one or more tokens that generation number `call` of process `pid` made."""

    text: str
    pid: int
    call: int


class Log(msgspec.Struct, frozen=True, tag="log", array_like=True):
    """A line in the log of a process. `time` is in seconds since the epoch."""

    pid: int
    time: float
    level: str
    event: str
    fields: dict[str, Any] = {}


class State(msgspec.Struct, frozen=True, tag="state", array_like=True):
    """The present activity of a task, in words: a model loads, or a call waits for a slot."""

    pid: int
    state: str
    detail: str = ""


class Emitted(msgspec.Struct, frozen=True, tag="emitted", array_like=True):
    """A value that an agent passed to `ctx.emit`."""

    pid: int
    value: Any


class Result(msgspec.Struct, frozen=True, tag="result", array_like=True):
    """The task returned `value`. Always the last event."""

    pid: int
    value: Any


class Failed(msgspec.Struct, frozen=True, tag="failed", array_like=True):
    """The task ended with an error. Always the last event."""

    pid: int
    error: ErrorInfo


class Missed(msgspec.Struct, frozen=True, tag="missed", array_like=True):
    """`events` events of the task are no longer retained; 0 if their number is unknown. Sent to a late client."""

    pid: int
    events: int


class Restarted(msgspec.Struct, frozen=True, tag="restarted", array_like=True):
    """The task restarted with the daemon. The events of its attempt number `attempt` follow from their beginning."""

    pid: int
    attempt: int


Event = Token | Log | State | Emitted | Result | Failed | Missed | Restarted
