"""The client protocol: the messages that travel in frames between a client and the daemon.

A client sends `Hello` first. After `Welcome` it may send any number of requests; answers arrive in any order and carry
the id of the request. A request that streams gets an `Event` for each unit of credit; the last is `Result`, `Failed` or
`End`. The daemon never sends an event without credit.
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
    """The first frame of a client: its version of the protocol, and a name, which is the owner of its tasks."""

    version: int
    client: str = ""


class Request(msgspec.Struct, tag="request", array_like=True):
    """A system call. The client chooses `id`; no two unanswered requests of a connection may have the same."""

    id: RequestId
    call: SystemCall


class Credit(msgspec.Struct, tag="credit", array_like=True):
    """Allows `events` more events under request `id`."""

    id: RequestId
    events: Annotated[int, Meta(ge=1)]


class Abandon(msgspec.Struct, tag="abandon", array_like=True):
    """The client wants no answer and no events of request `id` any more. A task that `id` started is killed."""

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
    """An `Answer` as a client decodes it. The value stays encoded until the client knows its type."""

    id: int
    value: msgspec.Raw


class Failure(msgspec.Struct, tag="failure", array_like=True):
    """Request `id` failed. With `id` 0 the connection itself failed, and the daemon closes it."""

    id: int
    error: ErrorInfo


class StreamEvent(msgspec.Struct, tag="event", array_like=True):
    """One event of request `id`.

    `number` counts the events of the task from its start in this run of the daemon. A joined event, such as a `Token`
    of several tokens, has the number of its last part. 0: these events are not counted.
    """

    id: int
    event: Event
    number: int = 0


class End(msgspec.Struct, tag="end", array_like=True):
    """Request `id` gets no more events."""

    id: int


FromDaemon = Welcome | RawAnswer | Failure | StreamEvent | End
