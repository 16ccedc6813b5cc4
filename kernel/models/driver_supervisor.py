"""The drivers of one model, one incarnation after another: started, spoken to, and noticed when they end or hang.

Owned by a model runtime, which says when to start and stop one and hears what became of it. It knows no sequences. It
never blocks: what takes time runs in tasks of its own, each with a time limit.
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

GRAIN = 0.001  # seconds by which a timer may strike early
MAX_BACKOFF = 10.0  # seconds between two restarts

log = structlog.get_logger("kernel.models")


class Listener(Protocol):
    """What hears of the drivers."""

    def driver_said(self, message: protocol.FromDriver) -> None: ...

    def driver_died(self, how: str) -> None:
        """It ended unasked, or was killed because of what it did."""

    def driver_missing(self, error: LlmosError) -> None:
        """It could not be started."""

    def awaiting_reply(self) -> bool:
        """Whether it has been asked for something that it has not answered."""


class DriverSupervisor:
    """The drivers of one model, one incarnation after another.

    `restarts` counts their deaths, `deaths_in_a_row` those since the last progress, `late_loads` the loads in a row
    that took too long.
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
        self._going: set[Driver] = set()  # drivers that are on their way out
        self._why = ""  # the driver was killed, if it was
        self._heard = 0.0  # when it last said something, or was first asked for something
        self._patience = RestartableTimer(loop, self._look)
        self._load_limit = RestartableTimer(loop, self._load_is_late)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int | None:
        return None if self._driver is None else self._driver.pid

    @property
    def present(self) -> bool:
        """Whether a driver process takes memory."""
        return self._driver is not None or bool(self._going)

    @property
    def silence(self) -> float:
        """Seconds since the driver last said anything, while it has something to say; else none."""
        return self._loop.time() - self._heard if self._patience.running else 0.0

    def start(self, load: Callable[[], protocol.Load]) -> None:
        """Start a driver and have it load: at once, or after a while that doubles with each death in a row.

        It hears nothing of what is sent before.
        """
        delay = 0.0 if self.deaths_in_a_row <= 1 else min(0.25 * 2**self.deaths_in_a_row, MAX_BACKOFF)
        self.run(self._start(load, delay))

    def send(self, message: protocol.ToDriver) -> None:
        """Tell the driver; if it has just died, what it was to do is done anew by its successor."""
        if self._driver is not None:
            self._driver.send(message)

    def ask(self, message: protocol.ToDriver) -> None:
        """`send` something that has to be answered: by anything at all within the model's `step_timeout`."""
        self.send(message)
        if self._driver is not None and not self._patience.running:
            self._heard = self._loop.time()
            self._patience.start(self._spec.step_timeout)

    def loaded(self) -> None:
        """It has loaded in time."""
        self.late_loads = 0
        self._load_limit.stop()

    def kill(self, why: str) -> None:
        """End the driver at once, for what it did; it is reported as a death, with `why`."""
        if self._driver is not None:
            self._why = why
            self._driver.kill()

    def stop(self) -> asyncio.Future[None]:
        """End the driver, or the start of one, and ignore what it still says.

        The future is done when the driver is gone.
        """
        return self.run(self._see_off(self._let_go()))

    async def close(self) -> None:
        """End all that runs, for ever."""
        for task in tuple(self._tasks):
            task.cancel()
        await self.stop()
        await asyncio.gather(*(driver.stop() for driver in self._going))

    async def _see_off(self, driver: Driver | None) -> None:
        if driver is None:
            return
        self._going.add(driver)
        await driver.stop()
        self._going.discard(driver)

    def run(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `coro` for the model until it ends, or `close`."""
        # asyncio.Task, not create_task: these are the kernel's own, whichever agent's call led here.
        task = asyncio.Task(coro, loop=self._loop)
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
            self._listener.driver_missing(error)
            return
        except TimeoutError:
            text = f"model {self._name}: the driver process could not be started within {limit:g} s"
            self._listener.driver_missing(ModelLoadFailed(text))
            return
        except OSError as error:
            text = f"model {self._name}: the driver cannot be started: {error}"
            self._listener.driver_missing(ModelLoadFailed(text))
            return
        if incarnation != self._incarnation:  # it is not wanted any more, or has died already
            await self._see_off(driver)
            return
        self._driver = driver
        self._load_limit.start(limit)
        driver.send(load())

    def _on_message(self, incarnation: int, message: protocol.FromDriver) -> None:
        if incarnation != self._incarnation:
            return
        self._heard = self._loop.time()
        self._listener.driver_said(message)
        if self._patience.running and not self._listener.awaiting_reply():
            self._patience.stop()

    def _on_exit(self, incarnation: int, how: str) -> None:
        if incarnation != self._incarnation:
            return
        how, self._why = self._why or how, ""
        self._let_go()
        self.deaths_in_a_row += 1
        self.restarts += 1
        self._listener.driver_died(how)

    def _look(self) -> None:
        """Whether the driver hangs."""
        silence, limit = self._loop.time() - self._heard, self._spec.step_timeout
        if not self._listener.awaiting_reply():
            return
        if silence >= limit - GRAIN:
            self.kill(f"hung: said nothing for {silence:.1f} s with work to do; step_timeout is {limit:g} s")
        else:
            self._patience.start(limit - silence)

    def _load_is_late(self) -> None:
        self.late_loads += 1
        self.kill(f"hung: did not load within {self._spec.load_timeout:g} s, which is load_timeout")

    def _let_go(self) -> Driver | None:
        """The driver is none of ours any more."""
        driver, self._driver = self._driver, None
        self._incarnation += 1
        self._load_limit.stop()
        self._patience.stop()
        return driver

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of a model failed inside the kernel", model=self._name, exc_info=error)
