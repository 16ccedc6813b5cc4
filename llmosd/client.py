"""The blocking client: plain sockets, no event loop, so that a small command starts fast.

Used by scripts and by `llmos`. One connection, any number of tasks at once; for one thread at a time.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from socket import socket as Socket  # noqa: N812
from types import TracebackType
from typing import Any, Self, cast

from ipc.codec import decode, encode
from ipc.errors import ConnectionLost, LlmosError, NoDaemon, TimedOut, from_wire
from ipc.frames import FrameDecoder, frame
from ipc.messages import Event, Log, Message
from ipc.protocol import Abandon, Credit, End, Failure, FromDaemon, RawAnswer, Request, StreamEvent
from ipc.syscalls import (
    Attach,
    Backup,
    Call,
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
from ipc.unix import default_socket, try_connect
from llmosd import session

FOREVER = float("inf")


class Task:
    """A task that was submitted: its events and its result. `id` lasts; `pid` is that of its process in this life of
    the daemon, and 0 if it has none; `seen` is how far its events were read, for `attach` on another connection."""

    def __init__(self, client: Client, number: int, submitted: Submitted, first: Iterable[Event] = ()) -> None:
        self._client = client
        self._number = number
        self._final: Event | None = None
        self.id = submitted.id
        self.pid = submitted.pid
        self.seen = session.Seen(submitted.attempt, 0)
        self._first = deque(first)  # events that are not of the daemon

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """All events in order; the last is `Result` or `Failed`. Raises `TimedOut` after `timeout` seconds in all."""
        if self._final is not None:
            yield self._final
            return
        while self._first:
            yield self._first.popleft()
        for message in self._client._events(self._number, timeout):
            self.seen = session.Seen(self.seen.attempt, message.number)
            if session.is_final(message.event):
                self._final = message.event
            yield message.event

    def result(self, timeout: float | None = None) -> Any:
        """The value that the agent returned. Raises its error; `TimedOut` after `timeout` seconds ends nothing."""
        for _ in self.events(timeout):
            pass
        assert self._final is not None
        return session.final_value(self._final)

    def cancel(self) -> None:
        """Kill the task; returns when it is gone."""
        self._client.kill(self.pid)


class Client:
    """A connection to the daemon. `socket` defaults to where the daemon listens by default."""

    def __init__(self, socket: str | Path | None = None, *, name: str = "client") -> None:
        self.socket = Path(socket) if socket is not None else default_socket()
        self._name = name
        self._connection: Socket | None = None
        self._frames = FrameDecoder()
        self._last_id = 0
        self._answers: dict[int, RawAnswer | Failure] = {}
        self._wanted: set[int] = set()
        self._streams: dict[int, deque[StreamEvent | End | Failure]] = {}
        self.pid = 0

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> None:
        """Connect and say hello. Raises `NoDaemon`; waits while the daemon's backlog is full."""
        until = time.monotonic() + session.CONNECT_TIMEOUT
        while (connection := try_connect(self.socket)) is None:
            if time.monotonic() > until:
                raise NoDaemon(f"the daemon at {self.socket} does not answer", socket=str(self.socket))
            time.sleep(0.005)
        self._connection = connection
        self._frames = FrameDecoder()
        try:
            self._send(session.hello(self._name))
            self.pid = session.welcomed(self._first(until)).pid
        except (ConnectionLost, TimedOut) as error:
            self.close()
            raise NoDaemon(f"the daemon at {self.socket} does not answer: {error}", socket=str(self.socket)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection. Attached tasks end with it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(self, call: Syscall, timeout: float | None = None) -> Any:
        """Make any system call of `ipc.syscalls`, and wait for its answer."""
        return self._wait_for_answer(self._request(call), call, timeout)

    # ---- tasks

    def submit(
        self,
        program: str,
        args: Mapping[str, Any] | None = None,
        *,
        positional: Iterable[Any] = (),
        lenient: bool = False,
        priority: int | None = None,
        deadline: float | None = None,
        owner: str | None = None,
        detach: bool = False,
        name: str | None = None,
        limits: Limits | None = None,
        key: str | None = None,
        durable: bool = False,
    ) -> Task:
        """Start a task. It ends with this connection unless `detach`, and after `deadline` seconds in any case.

        `positional` arguments come before those by name; `lenient` reads numbers and such from text. Others can reach
        it by `name`; it uses no more than `limits`. The same `key` of the same owner is the same task: whoever does not
        know whether a submission arrived repeats it with the key that it had.
        With `durable` a program is run as if it were marked so: see `llmosd.agent`.
        """
        call = session.submit(
            program,
            args,
            positional=positional,
            lenient=lenient,
            priority=priority,
            deadline=deadline,
            owner=owner,
            detach=detach,
            name=name,
            limits=limits,
            key=key,
            durable=durable,
        )
        return self._follow(call)

    def attach(self, task_id: str, *, after: session.Seen | tuple[int, int] | None = None) -> Task:
        """A task that was submitted before, by whomever: its events from now on, and its result. `UnknownTask`.

        With `after`, the `seen` of the task as somebody had it: the events that came since. What is not kept any more
        is told by `Missed`, and a task that began anew with the daemon by `Restarted`; (0, 0) is the beginning.
        """
        return self._follow(session.attach(task_id, after), after)

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
        """Start a task and wait for its result, at most `timeout` seconds."""
        task = self.submit(
            program, args, priority=priority, deadline=deadline, owner=owner, detach=detach, durable=durable
        )
        return task.result(timeout)

    def wait(self, pid: int, timeout: float | None = None) -> Any:
        """The result of process `pid`. Raises its error if it failed."""
        return session.outcome(self.request(Wait(pid, timeout)))

    def kill(self, pid: int) -> None:
        """End process `pid` and its children; returns when it is gone."""
        self.request(Kill(pid))

    def suspend(self, pid: int) -> None:
        """Stop process `pid` at its next system call, and take its generations off their slots."""
        self.request(Suspend(pid))

    def resume(self, pid: int) -> None:
        """Let a suspended process go on."""
        self.request(Resume(pid))

    def nice(self, pid: int, priority: int, *, relative: bool = False) -> int:
        """Give process `pid` a priority from -20 to 20, the most urgent, or add to the one it has; the new one."""
        now: int = self.request(Nice(pid, priority, relative))
        return now

    # ---- messages

    def send(self, to: int | str, body: Any, **options: Any) -> int:
        """Put a message into the mailbox of `to`, a pid or a name; options as in `ipc.syscalls.Send`. Its id."""
        message_id: int = self.request(Send(to, body, **options))
        return message_id

    def receive(self, timeout: float | None = None) -> Message:
        """The most urgent message to this client."""
        message: Message = self.request(Receive(timeout))
        return message

    def call(self, to: int | str, body: Any, timeout: float | None = None, **options: Any) -> Any:
        """Send to `to`, a pid or a name, and wait for its reply; options as in `ipc.syscalls.Call`."""
        return self.request(Call(to, body, timeout, **options))

    def reply(self, message: Message, body: Any) -> None:
        """Answer a message that came by a call."""
        self.request(Reply(message.sender, message.id, body))

    # ---- looking

    def ps(self, *, clients: bool = False, start: int = 0, limit: int = 10_000) -> list[ProcessInfo]:
        """The first `limit` living processes from pid `start` on; those of connections too if `clients`."""
        rows: list[ProcessInfo] = self.request(Ps(start, limit, clients))
        return rows

    def history(self, limit: int = 100, *, before: str | None = None) -> list[TaskInfo]:
        """The last `limit` tasks that were submitted, newest first; of those before the task `before`, if given."""
        rows: list[TaskInfo] = self.request(History(limit, before))
        return rows

    def logs(self, pid: int) -> list[Log]:
        """The last lines of the log of process `pid`."""
        lines: list[Log] = self.request(Logs(pid))
        return lines

    def follow(self, pid: int) -> Iterator[Log]:
        """The log of process `pid` so far, and then every new line until it ends."""
        call = Logs(pid, session.CREDIT)
        number = self._request(call)
        self._streams[number] = deque()
        try:
            yield from self._wait_for_answer(number, call)
            for message in self._events(number, None):
                assert isinstance(message.event, Log)
                yield message.event
        finally:
            self._abandon(number)

    def slots(self) -> list[SlotInfo]:
        """The slots of every model in use."""
        rows: list[SlotInfo] = self.request(Slots())
        return rows

    def policy(
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
        info: PolicyInfo = self.request(call)
        return info

    def models(self) -> list[ModelInfo]:
        """The configured models."""
        rows: list[ModelInfo] = self.request(Models())
        return rows

    def programs(self) -> list[ProgramInfo]:
        """The programs that can be run."""
        rows: list[ProgramInfo] = self.request(Programs())
        return rows

    def stats(self) -> Stats:
        """Counters of the daemon, and the machine."""
        stats: Stats = self.request(GetStats())
        return stats

    def ping(self, payload: Any = None) -> Any:
        """The payload, back from the daemon."""
        return self.request(Ping(payload)).payload

    def backup(self, path: str | Path) -> int:
        """Copy the daemon's journal to a new file that a daemon can start on; its size in bytes. `BackupFailed`."""
        size: int = self.request(Backup(session.absolute(path)))
        return size

    def shutdown(self, *, now: bool = False) -> None:
        """Stop the daemon: after a drain, or at once."""
        self.request(Shutdown(now))

    def wait_until_closed(self, timeout: float | None = None) -> None:
        """Return when the daemon has closed the connection. Raises `TimedOut`."""
        until = FOREVER if timeout is None else time.monotonic() + timeout
        try:
            while True:
                self._pump(until)
        except ConnectionLost:
            return

    # ---- the wire

    def _follow(self, call: Submit | Attach, after: session.Seen | tuple[int, int] | None = None) -> Task:
        number = self._request(call)
        self._streams[number] = deque()
        submitted: Submitted = self._wait_for_answer(number, call)
        return Task(self, number, submitted, session.first_events(after, submitted))

    def _request(self, call: Syscall) -> int:
        self._send(Request(self._last_id + 1, cast(SystemCall, call)))
        self._last_id += 1
        self._wanted.add(self._last_id)
        return self._last_id

    def _wait_for_answer(self, number: int, call: Syscall, timeout: float | None = None) -> Any:
        until = FOREVER if timeout is None else time.monotonic() + timeout
        try:
            while number not in self._answers:
                self._pump(until)
        except BaseException:
            self._abandon(number)
            raise
        finally:
            self._wanted.discard(number)
        answer = self._answers.pop(number)
        if isinstance(answer, Failure):
            raise from_wire(answer.error)
        return session.answer(call, answer.value)

    def _events(self, number: int, timeout: float | None) -> Iterator[StreamEvent]:
        until = FOREVER if timeout is None else time.monotonic() + timeout
        waiting, read = self._streams.get(number), 0
        if waiting is None:
            raise ConnectionLost(f"request {number} has no events any more")
        while True:
            while not waiting:
                self._pump(until)
            message = waiting.popleft()
            if isinstance(message, Failure):
                raise from_wire(message.error)
            if isinstance(message, End) or session.is_final(message.event):
                self._streams.pop(number, None)
            if isinstance(message, End):
                return
            yield message
            if session.is_final(message.event):
                return
            read += 1
            if read >= session.CREDIT // 2:
                self._send(Credit(number, read))
                read = 0

    def _abandon(self, number: int) -> None:
        self._answers.pop(number, None)
        self._streams.pop(number, None)
        if self._connection is not None:
            try:
                self._send(Abandon(number))
            except LlmosError:
                self.close()

    def _pump(self, until: float) -> None:
        """Wait for frames and file them under their requests."""
        for message in self._read(until):
            match message:
                case RawAnswer(id=number) | Failure(id=number) if number in self._wanted:
                    self._answers[number] = message
                case StreamEvent(id=number) if number in self._streams:
                    self._streams[number].append(message)
                case End(id=number) | Failure(id=number) if number in self._streams:
                    self._streams[number].append(message)
                case Failure(id=0, error=info):
                    self.close()
                    raise from_wire(info)
                case _:
                    pass  # the answer to something abandoned

    def _first(self, until: float) -> Any:
        """The first message on this connection."""
        while True:
            for message in self._read(until):
                return message

    def _read(self, until: float) -> Iterator[Any]:
        """The messages of the next read. Raises `TimedOut` when `until` (monotonic) passes first."""
        connection = self._connected()
        left = None if until == FOREVER else max(until - time.monotonic(), 0.0)
        if not select.select([connection], [], [], left)[0]:
            raise TimedOut("the daemon did not answer in time; what was asked for goes on")
        try:
            data = connection.recv(1 << 18)
        except OSError:
            data = b""
        if not data:
            self.close()
            raise session.lost(self.socket)
        for payload in self._frames.feed(data):
            yield decode(payload, FromDaemon)

    def _send(self, message: Any) -> None:
        connection = self._connected()
        data = memoryview(frame(encode(message)))
        try:
            while data:
                select.select([], [connection], [])
                data = data[connection.send(data) :]
        except OSError:
            self.close()
            raise session.lost(self.socket) from None

    def _connected(self) -> Socket:
        if self._connection is None:
            raise ConnectionLost("this client is not connected; use it as a context manager")
        return self._connection
