"""Model drivers that run on the loop of the test, and the launcher that starts them.

Every kernel under test launches these instead of driver processes. A driver runs the real simulated device and encodes
every message both ways; it never starts a process or opens a socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ipc.codec import decode, encode
from kernel.drivers import protocol
from kernel.drivers.process import EXIT_GRACE, OnExit, OnMessage
from kernel.drivers.simulated.device import SimulatedDevice
from kernel.drivers.simulated.memory import SimulatedMemory
from kernel.drivers.simulated.sequence import SimulatedSequence

FIRST_PID = 10_000_000  # of in-loop drivers; no process has a pid this large


class InLoopDriver:
    """One incarnation of the simulated driver, on the loop of the test. `sent` and `said` hold all messages."""

    def __init__(self, name: str, pid: int, on_message: OnMessage, on_exit: OnExit, identity: str) -> None:
        self.name = name
        self.identity = identity  # of the files of its model
        self.pid: int | None = pid
        self.sent: list[protocol.ToDriver] = []  # by the kernel
        self.said: list[protocol.FromDriver] = []  # by the driver
        self.alive = True
        self.stopped = False
        self.on_message = on_message
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        self.device = SimulatedDevice(self._say, lambda code: self.die(f"exit code {code}"))
        # A plain asyncio.Task, so that it does not become a thread of the agent whose call started the driver.
        self._task: asyncio.Task[None] = asyncio.Task(self.device.run(), loop=self._loop)

    def send(self, message: protocol.ToDriver) -> None:
        copy = decode(encode(message), protocol.ToDriver)
        self.sent.append(copy)
        if self.alive:
            self._loop.call_soon(self._handle, copy)

    async def stop(self) -> None:
        self.stopped = True
        self.send(protocol.Stop())
        try:
            async with asyncio.timeout(EXIT_GRACE):
                await self._gone.wait()
        except TimeoutError:
            self.kill()
            await self._gone.wait()

    def kill(self) -> None:
        self.die("signal 9")

    def die(self, how: str = "killed by the test") -> None:
        """End immediately, as by SIGKILL. Messages that it sent before still arrive, then its exit."""
        if self.alive:
            self.alive = False
            self._task.cancel()
            self.sequences.clear()  # so that its timers do nothing more
            self._loop.call_soon(self._exit, how)

    # ---- what the device has

    @property
    def sequences(self) -> dict[int, SimulatedSequence]:
        return self.device._sequences

    @property
    def queries(self) -> Mapping[int, protocol.ScoreQuery | protocol.EmbedQuery]:
        return self.device._queries

    @property
    def memory(self) -> SimulatedMemory:
        """Its KV memory."""
        return self.device._memory

    @property
    def leaked(self) -> int:
        """Bytes that the device leaked."""
        return sum(map(len, self.device._ballast))

    @property
    def task(self) -> asyncio.Task[None]:
        """The task that runs the device."""
        return self._task

    def sent_of(self, kind: type) -> list[Any]:
        """The messages of one kind that the kernel sent."""
        return [message for message in self.sent if isinstance(message, kind)]

    def _handle(self, message: protocol.ToDriver) -> None:
        if self.alive:
            self.device.handle(message)

    def _say(self, message: protocol.FromDriver) -> None:
        if isinstance(message, protocol.Loaded):
            message.identity = self.identity
        if self.alive:
            self.said.append(message)
            self._loop.call_soon(self.on_message, decode(encode(message), protocol.FromDriver))

    def _exit(self, how: str) -> None:
        self._gone.set()
        self._on_exit(how)


class InLoopLauncher:
    """Launches `InLoopDriver`s. Each launch raises the next of `refusals`, while there are any.

    `identity`: that of the model's files, at each load.
    """

    def __init__(self) -> None:
        self.drivers: list[InLoopDriver] = []
        self.refusals: list[BaseException] = []
        self.kinds: list[tuple[str, str]] = []
        self.identity = ""

    async def __call__(self, kind: str, name: str, on_message: OnMessage, on_exit: OnExit) -> InLoopDriver:
        self.kinds.append((kind, name))
        if self.refusals:
            raise self.refusals.pop(0)
        driver = InLoopDriver(name, FIRST_PID + len(self.kinds), on_message, on_exit, self.identity)
        self.drivers.append(driver)
        return driver

    @property
    def driver(self) -> InLoopDriver:
        """The latest incarnation."""
        return self.drivers[-1]

    @property
    def alive(self) -> list[InLoopDriver]:
        """The drivers that have not ended."""
        return [driver for driver in self.drivers if driver.alive]
