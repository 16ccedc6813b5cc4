"""Unloads one model: waits until its driver has written its sequences to disk, then stops the driver.

Called by the model runtime that owns it, which also sets `changed` at every change. It never chooses which model is
unloaded or which of its sequences are swapped out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from kernel.models.active_sequences import ActiveSequences
from kernel.models.driver_supervisor import DriverSupervisor

UNLOAD_SECONDS = 5.0  # seconds that a driver has to write its sequences to disk

log = structlog.get_logger("kernel.models")


class Unloader:
    """Waits for the driver of one model, and stops it.

    The runtime sets `changed` after each message of the driver, and when the driver has ended.
    """

    def __init__(
        self, name: str, active: ActiveSequences, supervisor: DriverSupervisor, clock: Callable[[], float]
    ) -> None:
        self.changed = asyncio.Event()
        self._name = name
        self._active = active
        self._supervisor = supervisor
        self._clock = clock

    async def await_swap_outs(self) -> None:
        """Return when the driver has written all sequences that were to be swapped out."""
        await self._until(lambda: not self._active.pager.swapping_out)

    async def unload(self) -> float:
        """Stop the driver when it owes no answer, or after `UNLOAD_SECONDS`. Returns the seconds that this took."""
        began = self._clock()
        try:
            async with asyncio.timeout(UNLOAD_SECONDS):
                await self._until(lambda: not self._active.awaiting_driver)
        except TimeoutError:
            log.warning("not all sequences were swapped out in time", model=self._name, seconds=UNLOAD_SECONDS)
        await self._supervisor.stop()
        return self._clock() - began

    async def _until(self, done: Callable[[], bool]) -> None:
        """Return when `done()` is true. Calls `done` at every change."""
        while not done():
            self.changed.clear()
            await self.changed.wait()
