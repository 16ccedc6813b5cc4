"""The kernel's side of a driver process: starts it, speaks the driver protocol with it, and notices its end.

Used by model runtimes. It restarts nothing: that is the runtime's decision.
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
from ipc.errors import LlmosError
from ipc.transport import FramedProtocol
from kernel.drivers.protocol import FromDriver, Stop, ToDriver

MODULES = {"transformers": "kernel.drivers.transformers", "simulated": "kernel.drivers.simulated"}
EXIT_GRACE = 3.0  # seconds between the request to stop and the kill

log = structlog.get_logger("kernel.driver")


class Driver(Protocol):
    """A driver as the runtime sees it: one incarnation, dead after `on_exit` was called."""

    pid: int | None

    def send(self, message: ToDriver) -> None:
        """Hand over a message; it is lost if the driver has died."""

    async def stop(self) -> None:
        """End it, and return when it is gone."""

    def kill(self) -> None:
        """End it at once, whatever it does; its exit is reported."""


OnMessage = Callable[[FromDriver], None]
OnExit = Callable[[str], None]


class Launcher(Protocol):
    """Starts a driver of a kind and a name for the log. Messages and the exit reach the callbacks in order."""

    async def __call__(self, kind: str, name: str, on_message: OnMessage, on_exit: OnExit) -> Driver: ...


class DriverProcess(FramedProtocol):
    """A driver in a child process, over a socket pair."""

    def __init__(self, name: str, on_message: OnMessage, on_exit: OnExit) -> None:
        super().__init__()
        self.pid: int | None = None
        self._name = name
        self._on_message = on_message
        self._on_exit = on_exit
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._gone = asyncio.Event()
        self._fault = ""  # what it did before it was cut off

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
            self._run(self._relay_errors(self._process))
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
        self.send_frame(ENCODER.encode(message))

    async def stop(self) -> None:
        self.send(Stop())
        self.flush()
        try:
            async with asyncio.timeout(EXIT_GRACE):
                await self._gone.wait()
        except TimeoutError:
            self.kill()
            await self._gone.wait()

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def frame_received(self, payload: bytes) -> None:
        self._on_message(decode(payload, FromDriver))

    def broken(self, error: LlmosError) -> None:
        log.error("driver broke the protocol", model=self._name, error=error.message)
        self._fault = f"broke the protocol: {error.message}"

    def closed(self) -> None:
        self._run(self._await_exit())

    async def _await_exit(self) -> None:
        """The socket is closed, so the process has ended or is of no more use."""
        assert self._process is not None
        try:
            async with asyncio.timeout(EXIT_GRACE):
                code = await self._process.wait()
        except TimeoutError:
            self.kill()
            code = await self._process.wait()
        self._gone.set()
        self._on_exit(self._fault or (f"signal {-code}" if code < 0 else f"exit code {code}"))

    async def _relay_errors(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:  # a line longer than the reader's buffer
                continue
            if not line:
                return
            log.warning(line.decode(errors="replace").rstrip(), model=self._name, driver_pid=process.pid)

    def _run(self, coro: Coroutine[Any, Any, None]) -> None:
        # asyncio.Task, not create_task: these are the kernel's own, whichever agent's call led here.
        task = asyncio.Task(coro, loop=self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def launch(kind: str, name: str, on_message: OnMessage, on_exit: OnExit) -> Driver:
    """Start a driver process of `kind` for the model called `name`."""
    driver = DriverProcess(name, on_message, on_exit)
    await driver.start(kind)
    return driver
