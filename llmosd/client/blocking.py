"""The blocking client: plain sockets and no event loop, so that a small command starts fast.

Used by scripts and by `llmos`. One connection carries any number of concurrent tasks, but only one thread may use it at
a time. `llmosd.client.methods` has most of its methods. It never imports asyncio.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from socket import socket as Socket  # noqa: N812
from types import TracebackType
from typing import Any, Self, TypeVar

from ipc.errors import ConnectionLost, LlmosError, NoDaemon, ProtocolError, TimedOut
from ipc.frames import FrameDecoder, frame
from ipc.messages import Event, Log
from ipc.protocol import FromDaemon, StreamEvent
from ipc.syscalls import Logs, Submitted, Syscall
from ipc.unix import default_socket, try_connect
from llmosd.client import session
from llmosd.client.cursor import Cursor, TaskReader
from llmosd.client.descriptor import Ask, Blocking, Follow
from llmosd.client.methods import ClientMethods
from llmosd.client.session import PendingRequest, Session

FOREVER = float("inf")

R = TypeVar("R")


class Task(TaskReader):
    """A submitted task: its events and its result."""

    def __init__(
        self,
        client: Client,
        pending: PendingRequest,
        submitted: Submitted,
        after: Cursor | tuple[int, int] | None = None,
    ) -> None:
        super().__init__(submitted, after)
        self._client = client
        self._pending = pending

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """All events in order; the last is `Result` or `Failed`. Raises `TimedOut` after `timeout` seconds in total."""
        if self._final is not None:
            yield self._final
            return
        while self._local_events:
            yield self._local_events.popleft()
        for message in self._client._events(self._pending, timeout):
            yield self._read(message)

    def result(self, timeout: float | None = None) -> Any:
        """The value that the agent returned. Raises its error, or `TimedOut`; after that, the task continues."""
        for _ in self.events(timeout):
            pass
        return self._value()

    def cancel(self) -> None:
        """Kill the task and wait for its end. Raises `ConnectionLost` if the connection to the task was lost."""
        self._pending.check()  # on another connection the pid may belong to another process
        if self.pid:
            self._client.kill(self.pid)


class Client(ClientMethods, Blocking[Task]):
    """A connection to the daemon. `socket` defaults to the daemon's default socket."""

    def __init__(self, socket: str | Path | None = None, *, name: str = "client") -> None:
        self.socket = Path(socket) if socket is not None else default_socket()
        self.pid = 0
        self._name = name
        self._connection: Socket | None = None
        self._frames = FrameDecoder()
        self._session = Session(PendingRequest)

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> None:
        """Connect and exchange greetings. Waits while the daemon's backlog is full. Raises `NoDaemon`."""
        until = time.monotonic() + session.CONNECT_TIMEOUT
        while (connection := try_connect(self.socket)) is None:
            if time.monotonic() > until:
                raise NoDaemon(f"the daemon at {self.socket} does not answer", socket=str(self.socket))
            time.sleep(0.005)
        self._connection = connection
        self._frames = FrameDecoder()
        self._session = Session(PendingRequest)
        try:
            self._send(session.hello(self._name))
            self.pid = session.welcomed(self._first_message(until)).pid
        except (ConnectionLost, TimedOut) as error:
            self.close()
            raise NoDaemon(f"the daemon at {self.socket} does not answer: {error}", socket=str(self.socket)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection. Tasks that are not detached end with it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._session.lose(session.not_connected())

    def request(self, call: Syscall, timeout: float | None = None) -> Any:
        """Make any system call of `ipc.syscalls` and return its answer."""
        return self._answer(self._open(call), timeout)

    def run(
        self,
        program: str,
        args: Mapping[str, Any] | None = None,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
        owner: str | None = None,
        detach: bool = False,
        durable: bool = False,
    ) -> Any:
        """Run a task and return its result. Waits at most `timeout` seconds, then raises `TimedOut`."""
        task = self.submit(
            program, args, priority=priority, deadline=deadline, owner=owner, detach=detach, durable=durable
        )
        return task.result(timeout)

    def follow(self, pid: int) -> Iterator[Log]:
        """The log of process `pid` so far, then every new line until the process ends."""
        pending = self._open(Logs(pid, session.CREDIT), streams=True)
        try:
            yield from self._answer(pending)
            for message in self._events(pending, None):
                assert isinstance(message.event, Log)
                yield message.event
        finally:
            self._abandon(pending)

    def wait_until_closed(self, timeout: float | None = None) -> None:
        """Wait until the daemon closes the connection. Raises `TimedOut`."""
        until = _until(timeout)
        try:
            while True:
                self._pump(until)
        except ConnectionLost:
            return

    # ---- requests

    def _ask(self, ask: Ask[R]) -> R:
        return ask.read(self.request(ask.call))

    def _follow(self, follow: Follow) -> Task:
        pending = self._open(follow.call, streams=True)
        return Task(self, pending, self._answer(pending), follow.after)

    def _open(self, call: Syscall, *, streams: bool = False) -> PendingRequest:
        self._connected()
        pending, payload = self._session.open(call, streams=streams)
        self._send(payload)
        return pending

    def _answer(self, pending: PendingRequest, timeout: float | None = None) -> Any:
        until = _until(timeout)
        try:
            while not pending.answered:
                self._pump(until)
            return pending.answer()
        except BaseException:
            self._abandon(pending)
            raise

    def _events(self, pending: PendingRequest, timeout: float | None) -> Iterator[StreamEvent]:
        until = _until(timeout)
        while not pending.exhausted:
            message = pending.next()
            if message is None:
                self._pump(until)
                continue
            yield message
            if (credit := pending.take_credit()) is not None:
                self._send(credit)

    def _abandon(self, pending: PendingRequest) -> None:
        payload = self._session.abandon(pending)
        if payload is not None and self._connection is not None:
            try:
                self._send(payload)
            except LlmosError:
                self.close()

    # ---- the connection

    def _pump(self, until: float) -> None:
        """Wait for messages, and pass each to its request."""
        for message in self._read(until):
            try:
                self._session.take(message)
            except LlmosError:
                self.close()
                raise

    def _first_message(self, until: float) -> FromDaemon:
        """Wait for the first message on this connection."""
        while True:
            for message in self._read(until):
                return message

    def _read(self, until: float) -> Iterator[FromDaemon]:
        """Read once and yield the messages. Raises `TimedOut` if none arrive until `until`, by the monotonic clock."""
        connection = self._connected()
        left = None if until == FOREVER else max(until - time.monotonic(), 0.0)
        if not select.select([connection], [], [], left)[0]:
            raise TimedOut("the daemon did not answer in time; it continues to work on the request")
        try:
            data = connection.recv(1 << 18)
        except OSError:
            data = b""
        if not data:
            self.close()
            raise session.closed_by_daemon(self.socket)
        try:
            for payload in self._frames.feed(data):
                yield session.received(payload)
        except ProtocolError:  # nobody knows where the next frame begins, so the connection is useless
            self.close()
            raise

    def _send(self, payload: bytes) -> None:
        connection = self._connected()
        data = memoryview(frame(payload))
        try:
            while data:
                select.select([], [connection], [])
                data = data[connection.send(data) :]
        except OSError:
            self.close()
            raise session.closed_by_daemon(self.socket) from None

    def _connected(self) -> Socket:
        if self._connection is None:
            raise session.not_connected()
        return self._connection


def _until(timeout: float | None) -> float:
    return FOREVER if timeout is None else time.monotonic() + timeout
