"""The client protocol: what travels in frames between a client and the daemon.

A client opens with `Hello`; after `Welcome` it may send any number of requests, answered out of order by id. Requests
that stream get `Event`s under their id, as many as the client granted credit for; the last one is `Result`, `Failed`
or `End`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ipc.errors import ErrorInfo
from ipc.messages import Event
from ipc.syscalls import SystemCall

VERSION = 1
RequestId = Annotated[int, Meta(ge=1)]


class Hello(msgspec.Struct, tag="hello", array_like=True):
    """First frame of a client: the version it speaks, and a name for the process table."""

    version: int
    client: str = ""


class Request(msgspec.Struct, tag="request", array_like=True):
    """A system call; `id` is the client's own, unique on its connection while unanswered."""

    id: RequestId
    call: SystemCall


class Credit(msgspec.Struct, tag="credit", array_like=True):
    """Allows `events` more events under request `id`."""

    id: RequestId
    events: Annotated[int, Meta(ge=1)]


class Abandon(msgspec.Struct, tag="abandon", array_like=True):
    """The client no longer wants the answer or the events of request `id`. A task started by it is killed."""

    id: RequestId


ToDaemon = Hello | Request | Credit | Abandon


class Welcome(msgspec.Struct, tag="welcome", array_like=True):
    """The daemon's answer to `Hello`: its version, its pid, and the pid of the client in the process table."""

    version: int
    daemon: int
    pid: int


class Answer(msgspec.Struct, tag="answer", array_like=True):
    """The answer to a request."""

    id: int
    value: Any


class RawAnswer(msgspec.Struct, tag="answer", array_like=True):
    """`Answer` as a client decodes it: the value stays encoded until its type is known."""

    id: int
    value: msgspec.Raw


class Failure(msgspec.Struct, tag="failure", array_like=True):
    """The request failed. `id` 0: the connection as a whole did, and is closed."""

    id: int
    error: ErrorInfo


class StreamEvent(msgspec.Struct, tag="event", array_like=True):
    """One event under request `id`.

    `number` is that of the last event of the task in it, counted from the task's beginning in this run of the daemon; 0
    if its events are not counted.
    """

    id: int
    event: Event
    number: int = 0


class End(msgspec.Struct, tag="end", array_like=True):
    """No more events under request `id`."""

    id: int


FromDaemon = Welcome | RawAnswer | Failure | StreamEvent | End
