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
from ipc.transport import BEHIND
from ipc.unix import peer_uid
from kernel.core.bounded_connection import NOT_OPEN, BoundedConnection
from kernel.core.process import Process, Thread
from kernel.core.stream import Stream
from kernel.core.traffic import FAIR_SHARE
from kernel.kernel import Kernel
from kernel.lib import descriptors
from kernel.lib.failures import traceback_text
from kernel.lib.users import user_name

HELLO_TIMEOUT = 10.0  # seconds until the first frame must have arrived
MAX_HELLO = 4096  # bytes of the first frame
MAX_CONNECTIONS = 65_536
MAX_REQUESTS = 65_536  # unanswered requests of one connection
MAX_REQUEST = MAX_FRAME  # bytes of every other frame

STREAMING = frozenset({Spawn, Submit, Attach, Logs})  # calls whose answer can be followed by events
DECODE = decoder(ToDaemon).decode

log = structlog.get_logger("kernel.connection")


class Connection(BoundedConnection):
    """The connection of one client. Tables hold its unanswered requests and open streams by the id of the request."""

    def __init__(self, kernel: Kernel, connections: set[Connection]) -> None:
        super().__init__(kernel.traffic, MAX_HELLO)
        self._kernel = kernel
        self._gate = kernel.gate
        self._connections = connections
        self._process: Process | None = None
        self._peer = os.getuid()  # the user of the client
        self._threads: dict[int, Thread] = {}  # the threads of requests that wait inside the kernel
        self._streams: dict[int, Stream] = {}
        self._tasks: dict[int, int] = {}  # pids of the tasks, started without `detach`, whose stream is open
        self._hello = self._loop.call_later(HELLO_TIMEOUT, self._hello_timed_out)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)
        socket = transport.get_extra_info("socket")
        peer = peer_uid(socket)
        if peer is not None:
            self._peer = peer
        if self._peer not in (0, os.getuid()):
            self.refuse(NotPermitted(f"this daemon serves user {os.getuid()} only, and you are user {peer}"))
        elif len(self._connections) > MAX_CONNECTIONS or (
            socket is not None and descriptors.is_reserved(socket.fileno())
        ):
            self._connections.discard(self)
            count = len(self._connections)
            self.refuse(Busy(f"{count} connections are open, which is all that this daemon can have", retry_after=1.0))

    def frame_received(self, payload: bytes) -> None:
        try:
            message = DECODE(payload)
        except Exception as error:
            self._bad_frame(payload, error)
            return
        kind = type(message)
        if kind is Request and self._process is not None:
            self._request(self._process, message.id, message.call, len(payload))
        elif self._process is None:
            if kind is Hello and not self._kernel.opened:
                self._hello.cancel()
                self._kernel.on_opened.append(partial(self._welcome_late, message))
                self.hold(NOT_OPEN)
            elif kind is Hello:
                self._welcome(message)
            else:
                self.refuse(OutOfTurn(f"the first frame must be a Hello, not a {kind.__name__}"))
        elif kind is Credit:
            if (stream := self._streams.get(message.id)) is not None:
                stream.grant(message.events)
        elif kind is Abandon:
            self._abandon(message)
        else:
            self.refuse(OutOfTurn("a connection takes one Hello, and this is the second"))

    def broken(self, error: LlmosError) -> None:
        log.warning("client cut off", client=self._process.program if self._process else "", error=error.message)
        self._gate.count_error(error)
        if not isinstance(error, SlowReader):
            self.send_frame(ENCODER.encode(Failure(0, to_wire(error))))

    def closed(self) -> None:
        super().closed()
        self._hello.cancel()
        self._connections.discard(self)
        for stream in tuple(self._streams.values()):
            stream.close()
        self._streams.clear()
        if self._process is not None:
            self._kernel.process_exit.end(self._process, "killed", "the client disconnected")

    # ---- requests

    def _request(self, process: Process, number: int, call: Syscall, size: int) -> None:
        try:
            if self._threads or self._streams or size > FAIR_SHARE:
                self._check_request(number, size)
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
                self.request_begun(size)
                thread.add_done_callback(partial(self._thread_done, number, call, size))
            else:
                self._answer(number, call, answer)

    def _check_request(self, number: int, size: int) -> None:
        """Raises `OutOfTurn` if the id is in use, and `Busy` if the unanswered requests are too many or too large."""
        if number in self._threads or number in self._streams:
            raise OutOfTurn(f"request id {number} is in use; use an id that no unanswered request or open stream has")
        if len(self._threads) >= MAX_REQUESTS:
            raise Busy(f"{MAX_REQUESTS} requests of this connection are unanswered; wait for answers", retry_after=1.0)
        if len(self._streams) >= MAX_REQUESTS:
            raise Busy(f"{MAX_REQUESTS} streams of this connection are open; end some", retry_after=1.0)
        self.check_request(size)

    def _thread_done(self, number: int, call: Syscall, size: int, thread: asyncio.Future[Any]) -> None:
        self.request_over(size)
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
                self._fail(number, too_large(f"the answer to {type(call).__name__}", len(payload), MAX_FRAME))
                return
            self.send_frame(payload)
            if len(payload) > BEHIND:
                self.flush()  # so that a client that sends many requests at once cannot make large answers pile up
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
        kind = type(call)  # the functions below last as long as the task, and the arguments of the call need not

        def deliver(event: Event) -> None:
            # Find the stream in the table: a closure over it would form a cycle, which only the collector frees.
            stream = self._streams.get(number)
            try:
                payload = encode(StreamEvent(number, event, 0 if stream is None else stream.number))
                if len(payload) > MAX_FRAME:
                    raise too_large(f"an event of {kind.__name__}", len(payload), MAX_FRAME)
                self.send_frame(payload)
            except LlmosError as error:
                self._fail(number, error)

        def end() -> None:
            self._streams.pop(number, None)
            self._tasks.pop(number, None)
            if kind is Logs:
                self.send_frame(ENCODER.encode(End(number)))

        # The stream starts without credit. `_answer` grants it, so that no event precedes the answer,
        # except a `State` for which a handler grants credit, because the answer itself has to wait.
        opened = self._streams[number] = Stream(deliver, 0, end)
        opened.reader = 0 if self._process is None else self._process.pid
        return opened

    # ---- opening and closing

    def _welcome(self, hello: Hello) -> None:
        self._hello.cancel()
        if hello.version != VERSION:
            self.refuse(
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
            self.refuse(error)
            return
        self._frames.limit = MAX_REQUEST
        self._process.watch(lambda _: self.close())
        self.send_frame(ENCODER.encode(Welcome(VERSION, os.getpid(), self._process.pid)))

    def _welcome_late(self, hello: Hello) -> None:
        """The journal was read."""
        if self.transport is not None and not self._closing:
            self._welcome(hello)
            self.release(NOT_OPEN)

    def _hello_timed_out(self) -> None:
        self.refuse(OutOfTurn(f"no Hello within {HELLO_TIMEOUT:.0f} s; it must be the first frame"))

    def _bad_frame(self, payload: bytes, error: Exception) -> None:
        """Answer with an error if the frame's request id can be read; otherwise refuse the client."""
        found = None if self._process is None else complaint(payload, error)
        if found is None:
            self.refuse(MalformedFrame(f"not a frame of this protocol: {bounded(text_of(error), MAX_BRIEF)}"))
        else:
            self._fail(*found)
