"""How one model leaves memory: the driver writes its sequences to disk, then ends.

Owned by a model runtime, which says when, and notifies it of every change. It decides neither which model leaves nor
which of its sequences are written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from kernel.models.active_sequences import ActiveSequences
from kernel.models.driver_supervisor import DriverSupervisor

LEAVE_SECONDS = 5.0  # that a driver gets to write down what it holds

log = structlog.get_logger("kernel.models")


class Unloader:
    """Waits until the driver has written what `work` had it write.

    `changed` is to be set when the driver has said something or is gone.
    """

    def __init__(
        self, name: str, active: ActiveSequences, supervisor: DriverSupervisor, clock: Callable[[], float]
    ) -> None:
        self.changed = asyncio.Event()
        self._name = name
        self._active = active
        self._supervisor = supervisor
        self._clock = clock

    async def written(self) -> None:
        """Returns when the driver writes nothing any more."""
        await self._until(lambda: not self._active.pager.leaving)

    async def unload(self) -> float:
        """End the driver when it owes nothing, after `LEAVE_SECONDS` at the latest; the seconds that this took."""
        began = self._clock()
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._until(lambda: not self._active.awaiting_driver)
        except TimeoutError:
            log.warning("not all sequences were written down in time", model=self._name, seconds=LEAVE_SECONDS)
        await self._supervisor.stop()
        return self._clock() - began

    async def _until(self, done: Callable[[], bool]) -> None:
        """Returns when `done`, which is asked whenever something may have changed."""
        while not done():
            self.changed.clear()
            await self.changed.wait()
