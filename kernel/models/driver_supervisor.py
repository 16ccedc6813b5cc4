"""The driver supervisor of one model: starts drivers, sends them messages, and notices when they end or hang.

The model runtime that owns the supervisor says when to start and stop a driver, and is notified of every outcome. Slow
operations run in asyncio tasks of their own. The supervisor never blocks the loop, and knows no sequences.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog

from ipc.errors import LlmosError, ModelLoadFailed
from kernel.drivers import protocol
from kernel.drivers.process import Driver, Launcher
from kernel.lib.restartable_timer import RestartableTimer
from kernel.models.spec import ModelSpec
from kernel.programs.origin import without_origin

GRAIN = 0.001  # seconds by which a timer may fire early
MAX_BACKOFF = 10.0  # seconds; the longest delay of a restart

log = structlog.get_logger("kernel.models")


class Listener(Protocol):
    """The runtime, as the supervisor sees it."""

    def driver_reported(self, message: protocol.FromDriver) -> None:
        """The present driver sent a message."""

    def driver_died(self, how: str) -> None:
        """The driver ended by itself, or was killed for a fault; `how` says why or how."""

    def driver_not_started(self, error: LlmosError) -> None:
        """A driver could not be started."""

    def awaiting_reply(self) -> bool:
        """Whether the driver still owes an answer."""


class DriverSupervisor:
    """The drivers of one model, one after the other: each is an incarnation with a number.

    `restarts` counts the deaths of drivers, `deaths_in_a_row` the deaths since the last token, and `late_loads` the
    loads in a row that took too long.
    """

    def __init__(
        self, name: str, spec: ModelSpec, launch: Launcher, loop: asyncio.AbstractEventLoop, listener: Listener
    ) -> None:
        self.restarts = 0
        self.deaths_in_a_row = 0
        self.late_loads = 0
        self._name = name
        self._spec = spec
        self._launch = launch
        self._loop = loop
        self._listener = listener
        self._driver: Driver | None = None
        self._incarnation = 0
        self._stopping: set[Driver] = set()  # drivers that were stopped and have not ended yet
        self._kill_reason = ""  # why this kernel killed the driver; empty if it did not
        self._last_message = 0.0  # start of the silence: the last message, or the first `ask` after all answers
        self._silence_timer = RestartableTimer(loop, self._check_silence)
        self._load_timer = RestartableTimer(loop, self._load_timed_out)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int | None:
        """The process id of the driver, None while there is none."""
        return None if self._driver is None else self._driver.pid

    @property
    def in_memory(self) -> bool:
        """Whether a driver process takes memory."""
        return self._driver is not None or bool(self._stopping)

    @property
    def silence(self) -> float:
        """Seconds since the last message of a driver that owes an answer; 0 if it owes none."""
        return self._loop.time() - self._last_message if self._silence_timer.running else 0.0

    def start(self, load: Callable[[], protocol.Load]) -> None:
        """Start a driver and send it `load()`.

        After two deaths in a row the start is delayed by one second. Each further death doubles the delay, up to
        `MAX_BACKOFF`. Messages that are sent before the driver has started are dropped.
        """
        delay = 0.0 if self.deaths_in_a_row <= 1 else min(0.25 * 2**self.deaths_in_a_row, MAX_BACKOFF)
        self.run(self._start(load, delay))

    def send(self, message: protocol.ToDriver) -> None:
        """Send `message`.

        It is lost if the driver has just died; then the runtime admits all sequences to the next driver.
        """
        if self._driver is not None:
            self._driver.send(message)

    def ask(self, message: protocol.ToDriver) -> None:
        """Send a message that needs an answer. A driver that sends nothing at all within `step_timeout` is killed."""
        self.send(message)
        if self._driver is not None and not self._silence_timer.running:
            self._last_message = self._loop.time()
            self._silence_timer.start(self._spec.step_timeout)

    def loaded(self) -> None:
        """The driver has loaded the model in time."""
        self.late_loads = 0
        self._load_timer.stop()

    def kill(self, why: str) -> None:
        """Kill the driver for a fault. Its death is reported with `why`."""
        if self._driver is not None:
            self._kill_reason = why
            self._driver.kill()

    def stop(self) -> asyncio.Future[None]:
        """Stop the driver, or cancel its start. Further messages of this driver are ignored.

        The future is done when the driver has ended.
        """
        driver = self._detach()
        if driver is not None:
            self._stopping.add(driver)  # now, not when the task begins: it takes memory until it has ended
        return self.run(self._stop_and_await(driver))

    async def close(self) -> None:
        """Cancel all tasks, and return when all drivers have ended. No driver is started after this."""
        for task in tuple(self._tasks):
            task.cancel()
        await self.stop()
        await asyncio.gather(*(driver.stop() for driver in self._stopping))

    async def _stop_and_await(self, driver: Driver | None) -> None:
        if driver is None:
            return
        self._stopping.add(driver)
        await driver.stop()
        self._stopping.discard(driver)

    def run(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `coro` in a task, which `close` cancels."""
        # Not create_task: the loop's task factory would make this a thread of the agent whose call led here.
        task = asyncio.Task(coro, loop=self._loop, context=without_origin())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    # ---- inside

    async def _start(self, load: Callable[[], protocol.Load], delay: float) -> None:
        incarnation = self._incarnation = self._incarnation + 1
        await asyncio.sleep(delay)
        if incarnation != self._incarnation:
            return
        limit = self._spec.load_timeout
        try:
            async with asyncio.timeout(limit):
                driver = await self._launch(
                    self._spec.driver,
                    self._name,
                    lambda message: self._on_message(incarnation, message),
                    lambda how: self._on_exit(incarnation, how),
                )
        except LlmosError as error:
            self._listener.driver_not_started(error)
            return
        except TimeoutError:
            text = f"model {self._name}: the driver process could not be started within {limit:g} s"
            self._listener.driver_not_started(ModelLoadFailed(text))
            return
        except OSError as error:
            text = f"model {self._name}: the driver cannot be started: {error}"
            self._listener.driver_not_started(ModelLoadFailed(text))
            return
        if incarnation != self._incarnation:  # the driver was stopped meanwhile, or has died already
            await self._stop_and_await(driver)
            return
        self._driver = driver
        self._load_timer.start(limit)
        driver.send(load())

    def _on_message(self, incarnation: int, message: protocol.FromDriver) -> None:
        if incarnation != self._incarnation:
            return
        self._last_message = self._loop.time()
        self._listener.driver_reported(message)
        if self._silence_timer.running and not self._listener.awaiting_reply():
            self._silence_timer.stop()

    def _on_exit(self, incarnation: int, how: str) -> None:
        if incarnation != self._incarnation:
            return
        how, self._kill_reason = self._kill_reason or how, ""
        self._detach()
        self.deaths_in_a_row += 1
        self.restarts += 1
        self._listener.driver_died(how)

    def _check_silence(self) -> None:
        """Kill the driver if it hangs: it owes an answer, and has been silent for `step_timeout`."""
        silence, limit = self._loop.time() - self._last_message, self._spec.step_timeout
        if not self._listener.awaiting_reply():
            return
        if silence >= limit - GRAIN:
            self.kill(f"hung: said nothing for {silence:.1f} s with work to do; step_timeout is {limit:g} s")
        else:
            self._silence_timer.start(limit - silence)

    def _load_timed_out(self) -> None:
        self.late_loads += 1
        self.kill(f"hung: did not load within {self._spec.load_timeout:g} s, which is load_timeout")

    def _detach(self) -> Driver | None:
        """Give up the driver: its later messages and its exit are ignored."""
        driver, self._driver = self._driver, None
        self._incarnation += 1
        self._load_timer.stop()
        self._silence_timer.stop()
        return driver

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of a model failed inside the kernel", model=self._name, exc_info=error)
