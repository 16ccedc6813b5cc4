"""The kernel's side of a driver process: starts the process, exchanges messages with it, and reports its end.

Used by the driver supervisor of each model (`kernel/models/driver_supervisor.py`). It never restarts a driver: the
runtime of the model decides whether to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog

from ipc.codec import ENCODER, decode
from ipc.errors import LlmosError, ProtocolError, brief, to_wire
from ipc.frames import MAX_FRAME, too_large
from ipc.transport import FramedProtocol
from kernel.drivers.protocol import FromDriver, SequenceFailed, Stop, ToDriver
from kernel.lib.failures import traceback_text
from kernel.programs.origin import without_origin

MODULES = {"transformers": "kernel.drivers.transformers", "simulated": "kernel.drivers.simulated"}
EXIT_GRACE = 3.0  # seconds that a driver has to exit after `Stop`, or after its connection ends, before it is killed

log = structlog.get_logger("kernel.driver")


class Driver(Protocol):
    """One incarnation of a driver, as its supervisor sees it. It is dead once `on_exit` has been called."""

    pid: int | None

    def send(self, message: ToDriver) -> None:
        """Send a message. It is lost if the driver has died."""

    async def stop(self) -> None:
        """Ask the driver to exit, kill it if it does not exit in time, and return when its process has ended."""

    def kill(self) -> None:
        """Kill the driver immediately, without waiting: `on_exit` is called when its process has ended."""


OnMessage = Callable[[FromDriver], None]
OnExit = Callable[[str], None]


class Launcher(Protocol):
    """Starts a driver of `kind` for the model called `name`.

    The launcher passes each message of the driver to `on_message`. At the end of the driver it calls `on_exit` once,
    with a short text such as "exit code 1".
    """

    async def __call__(self, kind: str, name: str, on_message: OnMessage, on_exit: OnExit) -> Driver: ...


class DriverProcess(FramedProtocol):
    """A driver in a child process, connected by a socket pair."""

    def __init__(self, name: str, on_message: OnMessage, on_exit: OnExit) -> None:
        super().__init__()
        self.pid: int | None = None
        self._name = name
        self._on_message = on_message
        self._on_exit = on_exit
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._exited = asyncio.Event()
        self._violation = ""  # the text for `on_exit` if the driver broke the protocol

    async def start(self, kind: str) -> None:
        """Start the process and connect to it."""
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", MODULES[kind], str(theirs.fileno()), str(os.getpid())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            self.pid = self._process.pid
            self._run(self._log_stderr(self._process))
            await self._loop.create_connection(lambda: self, sock=ours)
        except BaseException:
            ours.close()
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            raise
        finally:
            theirs.close()

    def send(self, message: ToDriver) -> None:
        try:
            payload = ENCODER.encode(message)
            if len(payload) > MAX_FRAME:
                raise too_large("a message to the driver", len(payload), MAX_FRAME)
        except Exception as error:
            self._not_sent(message, error)
        else:
            self.send_frame(payload)

    def _not_sent(self, message: ToDriver, error: Exception) -> None:
        """A message that cannot be sent fails its sequence, and no other."""
        log.error("a message to a driver cannot be sent", model=self._name, error=brief(error))
        sequence = getattr(message, "sequence", None)
        if sequence is not None:
            self._loop.call_soon(self._on_message, SequenceFailed(sequence, to_wire(error)))

    async def stop(self) -> None:
        self.send(Stop())
        self.flush()
        try:
            async with asyncio.timeout(EXIT_GRACE):
                await self._exited.wait()
        except TimeoutError:
            self.kill()
            await self._exited.wait()

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def frame_received(self, payload: bytes) -> None:
        message = decode(payload, FromDriver)
        try:
            self._on_message(message)
        except Exception as error:
            log.error("a message of a driver failed", model=self._name, exception=traceback_text(error, whole=True))
            raise ProtocolError(f"a {type(message).__name__} of the driver failed: {brief(error)}") from error

    def broken(self, error: LlmosError) -> None:
        log.error("driver broke the protocol", model=self._name, error=error.message)
        self._violation = f"broke the protocol: {error.message}"

    def closed(self) -> None:
        self._run(self._await_exit())

    async def _await_exit(self) -> None:
        """Wait until the process ends, and report it. Its socket is closed: kill it after `EXIT_GRACE` seconds."""
        assert self._process is not None
        try:
            async with asyncio.timeout(EXIT_GRACE):
                code = await self._process.wait()
        except TimeoutError:
            self.kill()
            code = await self._process.wait()
        self._exited.set()
        self._on_exit(self._violation or (f"signal {-code}" if code < 0 else f"exit code {code}"))

    async def _log_stderr(self, process: asyncio.subprocess.Process) -> None:
        """Write each line of the driver's standard error to the daemon's log, with the name of the model."""
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:  # the line is longer than the reader's buffer: skip it
                continue
            if not line:
                return
            log.warning(line.decode(errors="replace").rstrip(), model=self._name, driver_pid=process.pid)

    def _run(self, coro: Coroutine[Any, Any, None]) -> None:
        # Not create_task: the loop's task factory would make this a thread of the agent whose call led here, and it
        # would end with that agent.
        task = asyncio.Task(coro, loop=self._loop, context=without_origin())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def launch(kind: str, name: str, on_message: OnMessage, on_exit: OnExit) -> Driver:
    """Start a driver process of `kind` for the model called `name`."""
    driver = DriverProcess(name, on_message, on_exit)
    await driver.start(kind)
    return driver
