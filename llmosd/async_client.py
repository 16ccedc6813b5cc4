"""The asynchronous client: one connection, any number of calls and tasks at once.

Used by programs with an event loop of their own. It retries nothing but the connection's first moment.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from ipc.codec import decode, encode
from ipc.errors import ConnectionLost, LlmosError, NoDaemon, TimedOut, from_wire
from ipc.messages import Event, Log, Message
from ipc.protocol import Abandon, Credit, End, Failure, FromDaemon, RawAnswer, Request, StreamEvent
from ipc.syscalls import (
    Attach,
    Backup,
    Call,
    ExitStatus,
    GetStats,
    History,
    Kill,
    Limits,
    Logs,
    ModelInfo,
    Models,
    Nice,
    Ping,
    PolicyInfo,
    ProcessInfo,
    ProgramInfo,
    Programs,
    Ps,
    Receive,
    Reply,
    Resume,
    Send,
    SetPolicy,
    Shutdown,
    SlotInfo,
    Slots,
    Stats,
    Submit,
    Submitted,
    Suspend,
    Syscall,
    SystemCall,
    TaskInfo,
    Wait,
)
from ipc.transport import FramedProtocol
from ipc.unix import default_socket, try_connect
from llmosd import session
from llmosd.shared import Shared


class _Events:
    """Events of one request that have arrived and were not read."""

    __slots__ = ("ended", "read", "ready", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[StreamEvent] = deque()
        self.ready = asyncio.Event()
        self.ended: LlmosError | bool | None = False  # True: orderly; an error: why nothing more will come
        self.read = 0


class _Connection(FramedProtocol):
    """The wire: files answers and events under the ids of their requests."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.welcome: asyncio.Future[Any] = self._loop.create_future()
        self.answers: dict[int, tuple[Syscall, asyncio.Future[Any]]] = {}
        self.events: dict[int, _Events] = {}
        self.last_id = 0
        self.lost: LlmosError | None = None

    def frame_received(self, payload: bytes) -> None:
        message = decode(payload, FromDaemon)
        match message:
            case RawAnswer(id=number, value=value):
                call, future = self.answers.pop(number, (None, None))
                if call is not None and future is not None and not future.done():
                    try:
                        future.set_result(session.answer(call, value))
                    except LlmosError as error:
                        future.set_exception(error)
            case StreamEvent(id=number):
                if (events := self.events.get(number)) is not None:
                    events.waiting.append(message)
                    events.ready.set()
            case Failure(id=number, error=info) if number:
                _, future = self.answers.pop(number, (None, None))
                if future is not None and not future.done():
                    future.set_exception(from_wire(info))
                self._end_events(number, from_wire(info))
            case End(id=number):
                self._end_events(number, True)
            case Failure(error=info) if self.welcome.done():
                self.lost = from_wire(info)
            case _ if not self.welcome.done():
                self.welcome.set_result(message)

    def closed(self) -> None:
        error = self.lost = self.lost or session.lost(self.path)
        for future in (self.welcome, *(future for _, future in self.answers.values())):
            if not future.done():
                future.set_exception(error)
        self.welcome.exception()
        self.answers.clear()
        for number in tuple(self.events):
            self._end_events(number, error)

    def request(self, call: Syscall, *, streams: bool = False) -> tuple[int, asyncio.Future[Any]]:
        """Send `call`; the id it has, and the future of its answer."""
        if self.transport is None:
            raise self.lost or session.lost(self.path)
        payload = encode(Request(self.last_id + 1, cast(SystemCall, call)))
        self.last_id += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        self.answers[self.last_id] = call, future
        if streams:
            self.events[self.last_id] = _Events()
        self.send_frame(payload)
        return self.last_id, future

    def abandon(self, number: int) -> None:
        """We no longer want what request `number` brings."""
        self.answers.pop(number, None)
        self.events.pop(number, None)
        if self.transport is not None:
            self.send_frame(encode(Abandon(number)))

    def _end_events(self, number: int, how: LlmosError | bool) -> None:
        if (events := self.events.get(number)) is not None:
            events.ended = how
            events.ready.set()


class AsyncTask:
    """A task that was submitted: its events and its result. `id` lasts; `pid` is that of its process in this life of
    the daemon, and 0 if it has none; `seen` is how far its events were read, for `attach` on another connection."""

    def __init__(self, client: AsyncClient, number: int, submitted: Submitted, first: Iterable[Event] = ()) -> None:
        self._client = client
        self._number = number
        self._final: Event | None = None
        self.id = submitted.id
        self.pid = submitted.pid
        self.seen = session.Seen(submitted.attempt, 0)
        self._first = deque(first)  # events that are not of the daemon

    async def events(self) -> AsyncIterator[Event]:
        """All events in order; the last is `Result` or `Failed`. For one reader."""
        if self._final is not None:
            yield self._final
            return
        while self._first:
            yield self._first.popleft()
        async for message in self._client._events(self._number):
            self.seen = session.Seen(self.seen.attempt, message.number)
            if session.is_final(message.event):
                self._final = message.event
                self._client._forget(self._number)
            yield message.event

    async def result(self, timeout: float | None = None) -> Any:
        """The value that the agent returned. Raises its error; `TimedOut` after `timeout` seconds ends nothing."""
        try:
            async with asyncio.timeout(timeout):
                if self._final is None:
                    async for event in self.events():
                        self._final = event if session.is_final(event) else None
        except TimeoutError:
            raise TimedOut(f"process {self.pid} gave no result within {timeout} s; it goes on", pid=self.pid) from None
        assert self._final is not None
        return session.final_value(self._final)

    async def cancel(self) -> None:
        """Kill the task; returns when it is gone."""
        await self._client.kill(self.pid)


class AsyncClient:
    """A connection to the daemon. `socket` defaults to where the daemon listens by default."""

    def __init__(self, socket: str | Path | None = None, *, name: str = "async client") -> None:
        self.socket = Path(socket) if socket is not None else default_socket()
        self._name = name
        self._wire: _Connection | None = None
        self.pid = 0

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect and say hello. Raises `NoDaemon`; waits while the daemon's backlog is full."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(session.CONNECT_TIMEOUT):
                while (connection := try_connect(self.socket)) is None:
                    await asyncio.sleep(0.005)
                _, wire = await loop.create_unix_connection(lambda: _Connection(self.socket), sock=connection)
                wire.send_frame(encode(session.hello(self._name)))
                self.pid = session.welcomed(await wire.welcome).pid
        except TimeoutError:
            raise NoDaemon(f"the daemon at {self.socket} does not answer", socket=str(self.socket)) from None
        self._wire = wire

    async def close(self) -> None:
        """Close the connection. Attached tasks end with it."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def request(self, call: Syscall) -> Any:
        """Make any system call of `ipc.syscalls`, and wait for its answer."""
        wire = self._connected()
        number, future = wire.request(call)
        try:
            return await future
        except asyncio.CancelledError:
            wire.abandon(number)
            raise

    # ---- tasks

    async def submit(
        self,
        program: str,
        args: Mapping[str, Any] | None = None,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        owner: str | None = None,
        detach: bool = False,
        name: str | None = None,
        limits: Limits | None = None,
        key: str | None = None,
        durable: bool = False,
    ) -> AsyncTask:
        """Start a task. It ends with this connection unless `detach`, and after `deadline` seconds in any case.

        Others can reach it by `name`; it uses no more than `limits`. The same `key` of the same owner is the same
        task: whoever does not know whether a submission arrived repeats it with the key that it had.
        With `durable` a program is run as if it were marked so: see `llmosd.agent`.
        """
        call = session.submit(
            program,
            args,
            priority=priority,
            deadline=deadline,
            owner=owner,
            detach=detach,
            name=name,
            limits=limits,
            key=key,
            durable=durable,
        )
        return await self._follow(call)

    async def attach(self, task_id: str, *, after: session.Seen | tuple[int, int] | None = None) -> AsyncTask:
        """A task that was submitted before, by whomever: its events from now on, and its result. `UnknownTask`.

        With `after`, the `seen` of the task as somebody had it: the events that came since. What is not kept any more
        is told by `Missed`, and a task that began anew with the daemon by `Restarted`; (0, 0) is the beginning.
        """
        return await self._follow(session.attach(task_id, after), after)

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
        """Start a task and wait for its result, at most `timeout` seconds. Cancelled, it kills the task."""
        task = await self.submit(
            program, args, priority=priority, deadline=deadline, owner=owner, detach=detach, durable=durable
        )
        try:
            return await task.result(timeout)
        except asyncio.CancelledError:
            self._connected().abandon(task._number)
            raise

    async def wait(self, pid: int, timeout: float | None = None) -> Any:
        """The result of process `pid`. Raises its error if it failed."""
        status: ExitStatus = await self.request(Wait(pid, timeout))
        return session.outcome(status)

    async def kill(self, pid: int) -> None:
        """End process `pid` and its children; returns when it is gone."""
        await self.request(Kill(pid))

    async def suspend(self, pid: int) -> None:
        """Stop process `pid` at its next system call, and take its generations off their slots."""
        await self.request(Suspend(pid))

    async def resume(self, pid: int) -> None:
        """Let a suspended process go on."""
        await self.request(Resume(pid))

    async def nice(self, pid: int, priority: int, *, relative: bool = False) -> int:
        """Give process `pid` a priority from -20 to 20, the most urgent, or add to the one it has; the new one."""
        now: int = await self.request(Nice(pid, priority, relative))
        return now

    # ---- messages

    async def send(self, to: int | str, body: Any, **options: Any) -> int:
        """Put a message into the mailbox of `to`, a pid or a name; options as in `ipc.syscalls.Send`. Its id."""
        message_id: int = await self.request(Send(to, body, **options))
        return message_id

    async def receive(self, timeout: float | None = None) -> Message:
        """The most urgent message to this client."""
        message: Message = await self.request(Receive(timeout))
        return message

    async def call(self, to: int | str, body: Any, timeout: float | None = None, **options: Any) -> Any:
        """Send to `to`, a pid or a name, and wait for its reply; options as in `ipc.syscalls.Call`."""
        return await self.request(Call(to, body, timeout, **options))

    async def reply(self, message: Message, body: Any) -> None:
        """Answer a message that came by a call."""
        await self.request(Reply(message.sender, message.id, body))

    def shared(self, name: str, *, durable: bool = False) -> Shared:
        """The shared region `name`, which need not exist yet. Set by a `durable` handle it survives the daemon."""
        return Shared(self.request, name, durable=durable)

    # ---- looking

    async def ps(self, *, clients: bool = False, start: int = 0, limit: int = 10_000) -> list[ProcessInfo]:
        """The first `limit` living processes from pid `start` on; those of connections too if `clients`."""
        rows: list[ProcessInfo] = await self.request(Ps(start, limit, clients))
        return rows

    async def history(self, limit: int = 100, *, before: str | None = None) -> list[TaskInfo]:
        """The last `limit` tasks that were submitted, newest first; of those before the task `before`, if given."""
        rows: list[TaskInfo] = await self.request(History(limit, before))
        return rows

    async def logs(self, pid: int) -> list[Log]:
        """The last lines of the log of process `pid`."""
        lines: list[Log] = await self.request(Logs(pid))
        return lines

    async def follow(self, pid: int) -> AsyncIterator[Log]:
        """The log of process `pid` so far, and then every new line until it ends."""
        wire = self._connected()
        number, future = wire.request(Logs(pid, session.CREDIT), streams=True)
        try:
            for line in await future:
                yield line
            async for message in self._events(number):
                assert isinstance(message.event, Log)
                yield message.event
        finally:
            wire.abandon(number)

    async def slots(self) -> list[SlotInfo]:
        """The slots of every model in use."""
        rows: list[SlotInfo] = await self.request(Slots())
        return rows

    async def policy(
        self,
        model: str | None = None,
        kind: str | None = None,
        *,
        quantum: int | None = None,
        aging: float | None = None,
        weights: Mapping[str, float] | None = None,
        starvation: float | None = None,
    ) -> PolicyInfo:
        """The policy of the slots of `model` (None: the default one), after whatever is given was changed."""
        call = SetPolicy(model, kind, quantum, aging, dict(weights or {}), starvation)
        info: PolicyInfo = await self.request(call)
        return info

    async def models(self) -> list[ModelInfo]:
        """The configured models."""
        rows: list[ModelInfo] = await self.request(Models())
        return rows

    async def programs(self) -> list[ProgramInfo]:
        """The programs that can be run."""
        rows: list[ProgramInfo] = await self.request(Programs())
        return rows

    async def stats(self) -> Stats:
        """Counters of the daemon, and the machine."""
        stats: Stats = await self.request(GetStats())
        return stats

    async def ping(self, payload: Any = None) -> Any:
        """The payload, back from the daemon."""
        return (await self.request(Ping(payload))).payload

    async def backup(self, path: str | Path) -> int:
        """Copy the daemon's journal to a new file that a daemon can start on; its size in bytes. `BackupFailed`."""
        size: int = await self.request(Backup(session.absolute(path)))
        return size

    async def shutdown(self, *, now: bool = False) -> None:
        """Stop the daemon: after a drain, or at once."""
        await self.request(Shutdown(now))

    # ---- for tasks

    async def _follow(self, call: Submit | Attach, after: session.Seen | tuple[int, int] | None = None) -> AsyncTask:
        wire = self._connected()
        number, future = wire.request(call, streams=True)
        try:
            submitted: Submitted = await future
            return AsyncTask(self, number, submitted, session.first_events(after, submitted))
        except BaseException:
            wire.abandon(number)
            raise

    async def _events(self, number: int) -> AsyncIterator[StreamEvent]:
        wire = self._connected()
        events = wire.events.get(number)
        if events is None:
            raise ConnectionLost(f"request {number} has no events any more")
        while True:
            while events.waiting:
                message = events.waiting.popleft()
                events.read += 1
                if events.read >= session.CREDIT // 2 and wire.transport is not None:
                    wire.send_frame(encode(Credit(number, events.read)))
                    events.read = 0
                yield message
                if session.is_final(message.event):
                    return
            if events.ended is True:
                return
            if isinstance(events.ended, LlmosError):
                raise events.ended
            events.ready.clear()
            await events.ready.wait()

    def _forget(self, number: int) -> None:
        if self._wire is not None:
            self._wire.events.pop(number, None)

    def _connected(self) -> _Connection:
        if self._wire is None:
            raise ConnectionLost("this client is not connected; use it as a context manager")
        return self._wire
