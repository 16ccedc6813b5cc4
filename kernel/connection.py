"""The kernel's end of a client's connection, which has a process of its own. Its requests are that process's calls.

The daemon's listener creates a `Connection` for each client. When the connection ends, its unanswered requests end too,
and so do the tasks that it started without `detach`. The connection decodes frames, but never a value that it only
passes on.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from types import CoroutineType
from typing import Any

import structlog

from ipc.codec import ENCODER, decoder, encode, not_encodable
from ipc.errors import (
    MAX_BRIEF,
    Busy,
    Killed,
    LlmosError,
    MalformedFrame,
    NotPermitted,
    OutOfTurn,
    SlowReader,
    VersionMismatch,
    brief,
    text_of,
    to_wire,
)
from ipc.foreign import bounded, is_a
from ipc.frames import MAX_FRAME, too_large
from ipc.malformed import complaint
from ipc.messages import Event
from ipc.protocol import (
    VERSION,
    Abandon,
    Answer,
    Credit,
    End,
    Failure,
    Hello,
    Request,
    StreamEvent,
    ToDaemon,
    Welcome,
)
from ipc.syscalls import Attach, Logs, Spawn, Submit, Syscall
from ipc.transport import FramedProtocol
from kernel.core.process import Process, Thread
from kernel.core.stream import Stream
from kernel.kernel import Kernel
from kernel.lib.failures import traceback_text
from kernel.lib.users import peer_uid, user_name

HELLO_TIMEOUT = 10.0  # seconds until the first frame must have arrived
MAX_REQUESTS = 65_536  # unanswered requests of one connection

STREAMING = frozenset({Spawn, Submit, Attach, Logs})  # calls whose answer can be followed by events
DECODE = decoder(ToDaemon).decode

log = structlog.get_logger("kernel.connection")


class Connection(FramedProtocol):
    """The connection of one client. Tables hold its unanswered requests and open streams by the id of the request."""

    def __init__(self, kernel: Kernel, connections: set[Connection]) -> None:
        super().__init__()
        self._kernel = kernel
        self._gate = kernel.gate
        self._connections = connections
        self._process: Process | None = None
        self._peer = os.getuid()  # the user of the client
        self._threads: dict[int, Thread] = {}  # the threads of requests that wait inside the kernel
        self._streams: dict[int, Stream] = {}
        self._tasks: dict[int, int] = {}  # pids of the tasks, started without `detach`, whose stream is open
        self._early_frames: list[bytes] = []  # received before the kernel had read the journal
        self._hello = self._loop.call_later(HELLO_TIMEOUT, self._hello_timed_out)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)
        peer = peer_uid(transport.get_extra_info("socket"))
        if peer is not None:
            self._peer = peer
        if self._peer not in (0, os.getuid()):
            self._refuse(NotPermitted(f"this daemon serves user {os.getuid()} only, and you are user {peer}"))

    def frame_received(self, payload: bytes) -> None:
        try:
            message = DECODE(payload)
        except Exception as error:
            self._bad_frame(payload, error)
            return
        kind = type(message)
        if kind is Request and self._process is not None:
            self._request(self._process, message.id, message.call)
        elif self._process is None:
            if self._early_frames:
                self._early_frames.append(payload)
            elif kind is Hello and not self._kernel.opened:
                self._early_frames.append(payload)
                self._hello.cancel()
                self._kernel.on_opened.append(self._receive_early_frames)
                if self.transport is not None:
                    self.transport.pause_reading()
            elif kind is Hello:
                self._welcome(message)
            else:
                self._refuse(OutOfTurn(f"the first frame must be a Hello, not a {kind.__name__}"))
        elif kind is Credit:
            if (stream := self._streams.get(message.id)) is not None:
                stream.grant(message.events)
        elif kind is Abandon:
            self._abandon(message)
        else:
            self._refuse(OutOfTurn("a connection takes one Hello, and this is the second"))

    def _receive_early_frames(self) -> None:
        """Handle the frames that arrived before the kernel had read the journal."""
        self.resume_writing()
        frames, self._early_frames = self._early_frames, []
        for payload in frames:
            if self.transport is not None and not self.transport.is_closing():
                self.frame_received(payload)

    def pause_writing(self) -> None:
        # A peer that does not read its answers may not send more requests. Only the daemon's end of a connection stops
        # reading: if both ends did, each would wait until the other reads.
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def broken(self, error: LlmosError) -> None:
        log.warning("client cut off", client=self._process.program if self._process else "", error=error.message)
        self._gate.count_error(error)
        if not isinstance(error, SlowReader):
            self.send_frame(ENCODER.encode(Failure(0, to_wire(error))))

    def closed(self) -> None:
        self._hello.cancel()
        self._connections.discard(self)
        for stream in tuple(self._streams.values()):
            stream.close()
        self._streams.clear()
        if self._process is not None:
            self._kernel.process_exit.end(self._process, "killed", "the client disconnected")

    # ---- requests

    def _request(self, process: Process, number: int, call: Syscall) -> None:
        try:
            if self._threads or self._streams:
                self._check_request_id(number)
            if type(call) in STREAMING and call.credit:  # type: ignore[attr-defined]
                answer = self._gate.enter(process, call, self._open_stream(number, call))  # type: ignore[arg-type]
            else:
                answer = self._gate.enter(process, call)
        except OutOfTurn as error:
            self._send_error(number, error)
        except BaseException as error:  # also from code of agents, such as the type of an argument
            self._fail(number, error)
        else:
            if type(answer) is CoroutineType:
                thread = self._threads[number] = self._kernel.threads.start_thread(process, answer)
                thread.add_done_callback(partial(self._thread_done, number, call))
            else:
                self._answer(number, call, answer)

    def _check_request_id(self, number: int) -> None:
        """Raises `OutOfTurn` if the id is in use, and `Busy` if too many requests are unanswered."""
        if number in self._threads or number in self._streams:
            raise OutOfTurn(f"request id {number} is in use; use an id that no unanswered request or open stream has")
        if len(self._threads) >= MAX_REQUESTS:
            raise Busy(f"{MAX_REQUESTS} requests of this connection are unanswered; wait for answers", retry_after=1.0)

    def _thread_done(self, number: int, call: Syscall, thread: asyncio.Future[Any]) -> None:
        abandoned = self._threads.pop(number, None) is None
        if thread.cancelled():
            if not abandoned and not self._closing:  # neither did the client abandon the request, nor is it gone
                self._fail(number, Killed("the call was cancelled in the daemon; make it again"))
            return
        error = thread.exception()
        if abandoned:
            # The call finished before its cancellation. If it started a process, kill that process nevertheless.
            if error is None and type(call) is Spawn and not call.detach:
                self._end_task(thread.result(), "its client abandoned it")
        elif error is None:
            self._answer(number, call, thread.result())
        else:
            self._fail(number, error)

    def _end_task(self, pid: int, why: str) -> None:
        task = self._kernel.table.alive.get(pid)
        if task is not None and task.parent is self._process:  # a stream of `Attach` may show a task of another client
            self._kernel.process_exit.end(task, "killed", why)

    def _answer(self, number: int, call: Any, value: Any) -> None:
        if isinstance(call, Spawn) and number in self._streams and not call.detach:
            self._tasks[number] = value.pid if type(call) is Submit else value
        try:
            payload = ENCODER.encode(Answer(number, value))
        except Exception as error:
            self._fail(number, not_encodable(value, error))
        else:
            if len(payload) > MAX_FRAME:
                self._fail(number, too_large("the answer", len(payload), MAX_FRAME))
                return
            self.send_frame(payload)
            if self._streams and number in self._streams:
                self._streams[number].grant(call.credit)

    def _fail(self, number: int, error: BaseException) -> None:
        if (stream := self._streams.pop(number, None)) is not None:
            stream.close()
        self._send_error(number, error)

    def _send_error(self, number: int, error: BaseException) -> None:
        """Answer request `number` with an error."""
        if not is_a(error, LlmosError):
            text = traceback_text(error, whole=True)
            log.error("a system call failed inside the kernel", error=brief(error), exception=text)
        self._gate.count_error(error)
        payload = ENCODER.encode(Failure(number, to_wire(error)))
        if len(payload) > MAX_FRAME:
            payload = ENCODER.encode(Failure(number, to_wire(too_large("the error", len(payload), MAX_FRAME))))
        self.send_frame(payload)

    def _abandon(self, message: Abandon) -> None:
        if (thread := self._threads.pop(message.id, None)) is not None:
            thread.cancel()
        if (stream := self._streams.pop(message.id, None)) is not None:
            stream.close()
        if (pid := self._tasks.pop(message.id, None)) is not None:
            self._end_task(pid, "its client abandoned it")

    # ---- streams

    def _open_stream(self, number: int, call: Spawn | Attach | Logs) -> Stream:
        def deliver(event: Event) -> None:
            # Find the stream in the table: a closure over it would form a cycle, which only the collector frees.
            stream = self._streams.get(number)
            try:
                payload = encode(StreamEvent(number, event, 0 if stream is None else stream.number))
                if len(payload) > MAX_FRAME:
                    raise too_large("an event", len(payload), MAX_FRAME)
                self.send_frame(payload)
            except LlmosError as error:
                self._fail(number, error)

        def end() -> None:
            self._streams.pop(number, None)
            self._tasks.pop(number, None)
            if isinstance(call, Logs):
                self.send_frame(ENCODER.encode(End(number)))

        # The stream starts without credit. `_answer` grants it, so that no event precedes the answer.
        opened = self._streams[number] = Stream(deliver, 0, end)
        opened.reader = 0 if self._process is None else self._process.pid
        return opened

    # ---- opening and closing

    def _welcome(self, hello: Hello) -> None:
        self._hello.cancel()
        if hello.version != VERSION:
            self._refuse(
                VersionMismatch(
                    f"the client speaks protocol {hello.version}, this daemon {VERSION}; install matching versions",
                    client=hello.version,
                    daemon=VERSION,
                )
            )
            return
        try:
            self._process = self._kernel.lifecycle.open_client(user_name(self._peer), hello.client)
        except LlmosError as error:
            self._refuse(error)
            return
        self._process.watch(lambda _: self.close())
        self.send_frame(ENCODER.encode(Welcome(VERSION, os.getpid(), self._process.pid)))

    def _refuse(self, error: LlmosError) -> None:
        self.broken(error)
        self.close()

    def _hello_timed_out(self) -> None:
        self._refuse(OutOfTurn(f"no Hello within {HELLO_TIMEOUT:.0f} s; it must be the first frame"))

    def _bad_frame(self, payload: bytes, error: Exception) -> None:
        """Answer with an error if the frame's request id can be read; otherwise refuse the client."""
        found = None if self._process is None else complaint(payload, error)
        if found is None:
            self._refuse(MalformedFrame(f"not a frame of this protocol: {bounded(text_of(error), MAX_BRIEF)}"))
        else:
            self._fail(*found)
