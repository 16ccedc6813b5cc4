"""The asynchronous client: one connection, any number of concurrent calls and tasks.

Used by programs that have an event loop. `llmosd.client.methods` has most of its methods. It retries a connection that
the daemon cannot accept yet, and never a call.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ipc.errors import ConnectionLost, LlmosError
from ipc.frames import frame
from ipc.messages import Event, Log
from ipc.protocol import FromDaemon, StreamEvent
from ipc.syscalls import Logs, Submitted, Syscall
from ipc.transport import FramedProtocol
from ipc.unix import default_socket
from llmosd.client import bounds, session
from llmosd.client.bounds import GRACE, NEVER, Bound
from llmosd.client.cursor import Cursor, TaskReader
from llmosd.client.descriptor import Ask, Asynchronous, Follow
from llmosd.client.dialing import Dial
from llmosd.client.methods import ClientMethods
from llmosd.client.pages import pages
from llmosd.client.session import PendingRequest, Session
from llmosd.shared import Shared

STOPPED = 5.0  # seconds; if the loop is later than this, something has stopped or held it

R = TypeVar("R")


class _Awaited(PendingRequest):
    """A request that coroutines wait for."""

    __slots__ = ("_changed", "bound")

    def __init__(self, number: int, call: Syscall, streams: bool) -> None:
        super().__init__(number, call, streams)
        self.bound = NEVER
        self._changed = asyncio.Event()

    def wake(self) -> None:
        self._changed.set()

    async def change(self) -> None:
        """Wait for the next message to this request."""
        self._changed.clear()
        await self._changed.wait()


class _ClientConnection(FramedProtocol):
    """The connection: passes each message to its request, and wakes the coroutine that waits for it."""

    def __init__(self, path: Path) -> None:
        super().__init__(unread_limit=sys.maxsize)  # a daemon that lets large requests wait is no slow reader
        self.path = path
        self.welcome: asyncio.Future[FromDaemon] = self._loop.create_future()
        self._session = Session(_Awaited)
        self._lost: LlmosError | None = None
        # One timer for all requests, because a timer for each would take as long as the rest of a request.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf  # on the monotonic clock

    def frame_received(self, payload: bytes) -> None:
        message = session.received(payload)
        if not self.welcome.done():
            self.welcome.set_result(message)
            return
        try:
            pending = self._session.take(message)
        except LlmosError as error:
            self._lost = error
        else:
            if pending is not None:
                pending.wake()

    def broken(self, error: LlmosError) -> None:
        self._lost = error

    def closed(self) -> None:
        self._stop_timer()
        error = self._lost = self._lost or session.closed_by_daemon(self.path)
        if not self.welcome.done():
            self.welcome.set_exception(error)
            self.welcome.exception()
        for pending in self._session.lose(error):
            pending.wake()

    def open(self, call: Syscall, *, streams: bool = False) -> _Awaited:
        """Send `call`, and return the pending request."""
        if self.transport is None:
            raise self._lost or session.closed_by_daemon(self.path)
        pending, payload = self._session.open(call, streams=streams)
        self.send_frame(payload)
        return pending

    async def answer(self, pending: _Awaited, bound: Bound) -> Any:
        """Wait for the answer to `pending`. Abandons the request if the wait is cancelled or fails."""
        pending.bound = bound
        if bound.until < self._timer_at:
            self._start_timer(bound.until)
        try:
            while not pending.answered:
                await pending.change()
                if pending.early_states():
                    pending.bound = NEVER  # the daemon has said what it waits for
            return pending.answer()
        except BaseException:
            self.abandon(pending)
            raise

    async def events(self, pending: _Awaited) -> AsyncIterator[StreamEvent]:
        while not pending.exhausted:
            message = pending.next()
            if message is None:
                await pending.change()
                continue
            yield message
            if (credit := pending.take_credit()) is not None and self.transport is not None:
                self.send_frame(credit)

    def _start_timer(self, until: float) -> None:
        self._stop_timer()
        self._timer_at = until
        self._timer = self._loop.call_later(max(until - time.monotonic(), 0.0), self._end_late_requests)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, inf

    def _end_late_requests(self) -> None:
        """End the requests whose bound is reached, and start the timer for the next one."""
        now, following = time.monotonic(), inf
        late = now - self._timer_at > STOPPED
        self._timer, self._timer_at = None, inf
        if late:  # this program was stopped: read the answers that have arrived meanwhile first
            self._start_timer(now + GRACE)
            return
        for pending in self._session.unanswered():
            if pending.bound.until <= now:
                pending.expire(pending.bound.error())
                pending.wake()
            else:
                following = min(following, pending.bound.until)
        if following < inf:
            self._start_timer(following)

    def abandon(self, pending: _Awaited) -> None:
        """Drop `pending`, and notify the daemon that it need send nothing more for it."""
        payload = self._session.abandon(pending)
        if payload is not None and self.transport is not None:
            self.send_frame(payload)


class AsyncTask(TaskReader):
    """A submitted task: its events and its result."""

    def __init__(
        self,
        client: AsyncClient,
        wire: _ClientConnection,
        pending: _Awaited,
        submitted: Submitted,
        after: Cursor | tuple[int, int] | None = None,
    ) -> None:
        super().__init__(submitted, after)
        self._client = client
        self._wire = wire
        self._pending = pending

    async def events(self) -> AsyncIterator[Event]:
        """All events in order; the last is `Result` or `Failed`. Only one reader at a time."""
        if self._final is not None:
            yield self._final
            return
        while self._local_events:
            yield self._local_events.popleft()
        self._client._connected()
        async for message in self._wire.events(self._pending):
            yield self._read(message)

    async def result(self, timeout: float | None = None) -> Any:
        """The value that the agent returned. Raises its error, or `TimedOut`; after that, the task continues."""
        async with _within(bounds.within(timeout, f"process {self.pid} gave no result")):
            async for _ in self.events():
                pass
        return self._value()

    async def cancel(self) -> None:
        """Kill the task and wait for its end. Raises `ConnectionLost` if the connection to the task was lost."""
        self._pending.check()  # on another connection the pid may belong to another process
        if self.pid:
            await self._client.kill(self.pid)


class AsyncClient(ClientMethods, Asynchronous[AsyncTask]):
    """A connection to the daemon. `socket` defaults to the daemon's default socket."""

    def __init__(self, socket: str | Path | None = None, *, name: str = "async client") -> None:
        self.socket = Path(socket) if socket is not None else default_socket()
        self.pid = 0
        self._name = name
        self._wire: _ClientConnection | None = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect and exchange greetings. Waits for a daemon that is busy or starting.

        A connection that is open is closed first. Raises `NoDaemon`, and `NotPermitted` if another user listens there.
        """
        await self.close()
        loop = asyncio.get_running_loop()
        dial = Dial(self.socket)
        async with _within(dial.bound):
            while (connection := dial.connect()) is None:
                if dial.vacant is not None:
                    await asyncio.to_thread(dial.look)
                await asyncio.sleep(dial.pause)
            with suppress(OSError):  # if the daemon has refused already, its reason can still be read
                connection.send(frame(session.hello(self._name)))
            _, wire = await loop.create_unix_connection(lambda: _ClientConnection(self.socket), sock=connection)
            try:
                self.pid = session.welcomed(await wire.welcome).pid
            except ConnectionLost as error:
                wire.close()
                raise bounds.no_daemon(self.socket, f": {error}") from None
            except BaseException:
                wire.close()
                raise
        self._wire = wire

    async def close(self) -> None:
        """Close the connection. Tasks that are not detached end with it."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def request(self, call: Syscall, timeout: float | None = None) -> Any:
        """Make any system call of `ipc.syscalls` and return its answer. Raises `TimedOut` after `timeout` seconds.

        A listing is read page by page, and returned whole.

        Without a timeout, a call that waits for nothing raises `NoDaemon` if it is not answered in time
        (`llmosd.client.bounds`).
        """
        wire = self._connected()
        bound = bounds.answering(call, self.socket, timeout)
        listing = pages(call)
        if listing is None:
            return await wire.answer(wire.open(call), bound)
        while listing.call is not None:
            listing.add(await wire.answer(wire.open(listing.call), bound))
        return listing.rows

    async def run(
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
        """Run a task and return its result. Waits at most `timeout` seconds in total, then raises `TimedOut`.

        Cancelling this call kills the task.
        """
        bound = bounds.within(timeout, f"{program} gave no result")
        async with _within(bound):
            task = await self.submit(
                program, args, priority=priority, deadline=deadline, owner=owner, detach=detach, durable=durable
            )
        try:
            async with _within(bound):
                return await task.result()
        except asyncio.CancelledError:
            task._wire.abandon(task._pending)
            raise

    def shared(self, name: str, *, durable: bool = False) -> Shared:
        """The shared region `name`, which may not exist yet. Values set by a `durable` handle survive the daemon."""
        return Shared(self.request, name, durable=durable)

    async def follow(self, pid: int) -> AsyncIterator[Log]:
        """The log of process `pid` so far, then every new line until the process ends."""
        wire = self._connected()
        call = Logs(pid, session.CREDIT)
        pending = wire.open(call, streams=True)
        try:
            for line in await wire.answer(pending, bounds.answering(call, self.socket)):
                yield line
            async for message in wire.events(pending):
                assert isinstance(message.event, Log)
                yield message.event
        finally:
            wire.abandon(pending)

    async def _ask(self, ask: Ask[R]) -> R:
        return ask.read(await self.request(ask.call))

    async def _follow(self, follow: Follow) -> AsyncTask:
        wire = self._connected()
        pending = wire.open(follow.call, streams=True)
        submitted = await wire.answer(pending, bounds.answering(follow.call, self.socket))
        return AsyncTask(self, wire, pending, submitted, follow.after)

    def _connected(self) -> _ClientConnection:
        if self._wire is None:
            raise session.not_connected()
        return self._wire


@asynccontextmanager
async def _within(bound: Bound) -> AsyncIterator[None]:
    """Cancel the `with` block at the end of `bound`, and raise its error."""
    scope = asyncio.timeout(bound.left())
    try:
        async with scope:
            yield
    except TimeoutError:
        if scope.expired():
            raise bound.error() from None
        raise
