"""The client protocol: the messages that travel in frames between a client and the daemon.

A client sends `Hello` first. After `Welcome` it may send any number of requests; answers arrive in any order, each with
the id of its request. A request that grants credit also gets events, one for each unit of credit. The last event of a
task is `Result` or `Failed`; a stream of log lines is closed by `End`. The daemon never sends an event without credit.
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
    """The first frame of a client: its version of the protocol, and a name for its connection.

    `llmos ps -a` shows the name as the program of the connection. The owner of its tasks is the user of the client.
    """

    version: int
    client: str = ""


class Request(msgspec.Struct, tag="request", array_like=True):
    """A system call. The client chooses `id`; no unanswered request or open stream of the connection may have it."""

    id: RequestId
    call: SystemCall


class Credit(msgspec.Struct, tag="credit", array_like=True):
    """Allows the daemon to send `events` more events of request `id`."""

    id: RequestId
    events: Annotated[int, Meta(ge=1)]


class Abandon(msgspec.Struct, tag="abandon", array_like=True):
    """The client wants no more answers or events of request `id`. A task that the request started is killed.

    A detached task goes on.
    """

    id: RequestId


ToDaemon = Hello | Request | Credit | Abandon


class Welcome(msgspec.Struct, tag="welcome", array_like=True):
    """The answer to `Hello`: the daemon's version and pid, and the pid of the connection in the process table."""

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

    `number` counts the events of the task from the start of its present attempt. If several events were joined, as in a
    `Token` with several tokens, the joined event has the number of the last of them. Lines of a log have the number 0.
    """

    id: int
    event: Event
    number: int = 0


class End(msgspec.Struct, tag="end", array_like=True):
    """Request `id` gets no more events."""

    id: int


FromDaemon = Welcome | RawAnswer | Failure | StreamEvent | End
