"""The blocking client: plain sockets and no event loop, so that a small command starts fast.

Used by scripts and by `llmos`. One connection carries any number of concurrent tasks, but only one thread may use it at
a time. `llmosd.client.methods` has most of its methods. It never imports asyncio.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from socket import socket as Socket  # noqa: N812
from types import TracebackType
from typing import Any, Self, TypeVar

from ipc.errors import ConnectionLost, LlmosError, ProtocolError, TimedOut
from ipc.frames import FrameDecoder, frame
from ipc.messages import Event, Log, State
from ipc.protocol import FromDaemon, StreamEvent
from ipc.syscalls import Logs, Ping, Submitted, Syscall
from ipc.unix import default_socket
from llmosd.client import bounds, session
from llmosd.client.bounds import NEVER, Bound
from llmosd.client.cursor import Cursor, TaskReader
from llmosd.client.descriptor import Ask, Blocking, Follow
from llmosd.client.dialing import Dial
from llmosd.client.methods import ClientMethods
from llmosd.client.pages import pages
from llmosd.client.session import PendingRequest, Session

LONGEST_POLL = 2**31 - 1  # milliseconds that the system takes
PING_AFTER = 10.0  # seconds of silence after which the client checks that a stopping daemon lives

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
        """All events in order; the last is `Result` or `Failed`. Raises `TimedOut` after `timeout` seconds in total.

        After `TimedOut` the task continues.
        """
        if self._final is not None:
            yield self._final
            return
        while self._local_events:
            yield self._local_events.popleft()
        bound = bounds.within(timeout, f"process {self.pid} gave no result")
        for message in self._client._events(self._pending, bound):
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
        # Called with what a task that was submitted or attached to waits for before it begins.
        self.on_wait: Callable[[State], None] | None = None
        self._name = name
        self._connection: Socket | None = None
        self._expiry = NEVER  # bounds all waits of this client
        self._unsent: deque[memoryview] = deque()  # frames that wait for room in the socket; of the first, the rest
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
        """Connect and exchange greetings. Waits for a daemon that is busy or starting.

        A connection that is open is closed first. Raises `NoDaemon`, and `NotPermitted` if another user listens there.
        """
        self.close()
        dial = Dial(self.socket)
        bound = dial.bound
        while (connection := dial.attempt()) is None:
            self._left(bound)
            time.sleep(dial.pause)
        self._connection = connection
        self._unsent.clear()
        self._frames = FrameDecoder()
        self._session = Session(PendingRequest)
        try:
            self._send(session.hello(self._name), bound)
            self.pid = session.welcomed(self._first_message(bound)).pid
        except ConnectionLost as error:
            self.close()
            raise bounds.no_daemon(self.socket, f": {error}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection. Tasks that are not detached end with it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._session.lose(session.not_connected())

    @contextmanager
    def expiring(self, timeout: float | None, what: str) -> Iterator[None]:
        """In the `with` block, all waits of this client end `timeout` seconds from now, with `TimedOut`.

        `what` names the missing event in the text of the error: "process 7 gave no result".
        """
        outer, inner = self._expiry, bounds.within(timeout, what)
        self._expiry = min(outer, inner, key=lambda bound: bound.until)
        try:
            yield
        finally:
            self._expiry = outer

    def check_time(self) -> None:
        """Raise `TimedOut` if the time of `expiring` has passed."""
        if self._expiry.until < time.monotonic():
            raise self._expiry.error()

    def request(self, call: Syscall, timeout: float | None = None) -> Any:
        """Make any system call of `ipc.syscalls` and return its answer. Raises `TimedOut` after `timeout` seconds.

        A listing is read page by page, and returned whole.

        Without a timeout, a call that waits for nothing raises `NoDaemon` if it is not answered in time
        (`llmosd.client.bounds`).
        """
        bound = bounds.answering(call, self.socket, timeout)
        listing = pages(call)
        if listing is None:
            return self._answer(self._open(call, bound), bound)
        while listing.call is not None:
            listing.add(self._answer(self._open(listing.call, bound), bound))
        return listing.rows

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
        """Run a task and return its result. Waits at most `timeout` seconds in total, then raises `TimedOut`."""
        with self.expiring(timeout, f"{program} gave no result"):
            task = self.submit(
                program, args, priority=priority, deadline=deadline, owner=owner, detach=detach, durable=durable
            )
            return task.result()

    def follow(self, pid: int) -> Iterator[Log]:
        """The log of process `pid` so far, then every new line until the process ends."""
        call = Logs(pid, session.CREDIT)
        bound = bounds.answering(call, self.socket)
        pending = self._open(call, bound, streams=True)
        try:
            yield from self._answer(pending, bound)
            for message in self._events(pending, NEVER):
                assert isinstance(message.event, Log)
                yield message.event
        finally:
            self._abandon(pending)

    def wait_until_closed(self, timeout: float | None = None) -> None:
        """Wait until the daemon closes the connection. Raises `TimedOut`, and `NoDaemon` if it answers no `Ping`."""
        with self.expiring(timeout, "the daemon did not close the connection"):
            try:
                while True:
                    try:
                        self._pump(bounds.within(PING_AFTER, "no message"))
                    except TimedOut:
                        self.request(Ping())
            except ConnectionLost:
                return

    # ---- requests

    def _ask(self, ask: Ask[R]) -> R:
        return ask.read(self.request(ask.call))

    def _follow(self, follow: Follow) -> Task:
        bound = bounds.answering(follow.call, self.socket)
        pending = self._open(follow.call, bound, streams=True)
        return Task(self, pending, self._answer(pending, bound), follow.after)

    def _open(self, call: Syscall, bound: Bound, *, streams: bool = False) -> PendingRequest:
        if self._unsent:
            self._flush(bound)  # so at most one request waits for room in the socket
        pending, payload = self._session.open(call, streams=streams)
        try:
            self._send(payload, bound)
        except BaseException:
            self._abandon(pending)
            raise
        return pending

    def _answer(self, pending: PendingRequest, bound: Bound) -> Any:
        try:
            while not pending.answered:
                self._pump(bound)
                for state in pending.early_states():
                    bound = NEVER  # the daemon has said what it waits for
                    if self.on_wait is not None:
                        self.on_wait(state)
            return pending.answer()
        except BaseException:
            self._abandon(pending)
            raise

    def _events(self, pending: PendingRequest, bound: Bound) -> Iterator[StreamEvent]:
        while not pending.exhausted:
            message = pending.next()
            if message is None:
                self._pump(bound)
                continue
            yield message
            if (credit := pending.take_credit()) is not None:
                self._send(credit, bound)

    def _abandon(self, pending: PendingRequest) -> None:
        payload = self._session.abandon(pending)
        if payload is not None and self._connection is not None:
            self._unsent.append(memoryview(frame(payload)))
            with suppress(LlmosError):
                self._write()  # the rest goes out with the next request

    # ---- the connection

    def _pump(self, bound: Bound) -> None:
        """Wait for messages, and pass each to its request."""
        for message in self._read(bound):
            try:
                self._session.take(message)
            except LlmosError:
                self.close()
                raise

    def _first_message(self, bound: Bound) -> FromDaemon:
        """Wait for the first message on this connection."""
        while True:
            for message in self._read(bound):
                return message

    def _read(self, bound: Bound) -> Iterator[FromDaemon]:
        """Read once and yield the messages. Writes frames that wait. Raises the error of the bound if none arrive."""
        connection = self._connected()
        while not self._wait(connection, bound):
            self._write()
            connection = self._connected()
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

    def _send(self, payload: bytes, bound: Bound) -> None:
        self._connected()
        self._unsent.append(memoryview(frame(payload)))
        self._flush(bound)

    def _flush(self, bound: Bound) -> None:
        """Write all frames that wait. Reads meanwhile: the daemon reads nothing while its answers are not read."""
        while self._write():
            if self._wait(self._connected(), bound):
                self._pump(bound)

    def _write(self) -> bool:
        """Write as much as the socket takes now. Returns whether frames still wait."""
        connection, unsent = self._connected(), self._unsent
        try:
            while unsent:
                unsent[0] = unsent[0][connection.send(unsent[0]) :]
                if not unsent[0]:
                    unsent.popleft()
        except BlockingIOError:
            return True
        except OSError:  # the daemon has closed the connection: the next read yields its last words, then the end
            unsent.clear()
        return False

    def _wait(self, connection: Socket, bound: Bound) -> bool:
        """Wait until the socket can be read (True), or else written if frames wait. Raises the error of the bound."""
        poll = select.poll()  # `select.select` takes no descriptor above 1,023
        poll.register(connection, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        while True:
            left = self._left(bound)
            ready = poll.poll(None if left is None else min(ceil(1000 * left), LONGEST_POLL))
            if ready:
                return ready[0][1] != select.POLLOUT  # an error or a hang-up is read

    def _left(self, bound: Bound) -> float | None:
        """Seconds to wait; None for any time. Raises the error of the bound after its end."""
        return self._earlier(bound).left()

    def _earlier(self, bound: Bound) -> Bound:
        return bound if bound.until <= self._expiry.until else self._expiry

    def _connected(self) -> Socket:
        if self._connection is None:
            raise session.not_connected()
        return self._connection
