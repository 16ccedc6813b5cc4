"""Envelopes of messages between agents, and the events of a task that its submitter sees.

Made by the kernel, seen by agents and clients. A body that came from a socket stays encoded until someone reads it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipc.errors import ErrorInfo


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a mailbox holds. `correlation` is not 0 if the sender waits for a reply; `deadline` is loop time or None."""

    id: int
    type: str
    sender: int
    recipient: int
    priority: int
    correlation: int
    deadline: float | None
    body: Any


class Token(msgspec.Struct, frozen=True, tag="token", array_like=True):
    """Text that generation number `call` of process `pid` released; neighbouring tokens may be joined."""

    text: str
    pid: int
    call: int


class Log(msgspec.Struct, frozen=True, tag="log", array_like=True):
    """A line in the log of a process. `time` is seconds since the epoch."""

    pid: int
    time: float
    level: str
    event: str
    fields: dict[str, Any] = {}


class State(msgspec.Struct, frozen=True, tag="state", array_like=True):
    """What a task is doing now, in words: a model loads, its call waits for a slot."""

    pid: int
    state: str
    detail: str = ""


class Emitted(msgspec.Struct, frozen=True, tag="emitted", array_like=True):
    """A value that an agent handed out with `ctx.emit`."""

    pid: int
    value: Any


class Result(msgspec.Struct, frozen=True, tag="result", array_like=True):
    """The task ended well. Always the last event."""

    pid: int
    value: Any


class Failed(msgspec.Struct, frozen=True, tag="failed", array_like=True):
    """The task ended with an error. Always the last event."""

    pid: int
    error: ErrorInfo


class Missed(msgspec.Struct, frozen=True, tag="missed", array_like=True):
    """Events of the task that are not kept any more: so many, or 0 if that is not known. Who attaches late gets it."""

    pid: int
    events: int


class Restarted(msgspec.Struct, frozen=True, tag="restarted", array_like=True):
    """The daemon was started anew, and the task with it: the events of its `attempt` follow from their beginning."""

    pid: int
    attempt: int


Event = Token | Log | State | Emitted | Result | Failed | Missed | Restarted
