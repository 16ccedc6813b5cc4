"""Virtual time: an event loop whose clock jumps to the next timer instead of sleeping.

All asynchronous unit tests run on it unless they are marked `real_time`, and so do the explorations. It never waits
for a timer; if nothing is ready and no timer is set, it raises instead of hanging.
"""

from __future__ import annotations

import asyncio
import selectors
from contextvars import Context
from typing import Any

from kernel.event_loop.guarded import Guarded


class _JumpingSelector(selectors.DefaultSelector):
    """Where the loop would sleep until its next timer, the clock moves instead (trio's autojump clock)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.executing = 0  # calls in worker threads, during which no time passes

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if self.executing:
            return super().select(None)
        if events := super().select(0):
            return events
        if timeout is None:
            raise RuntimeError("deadlock: nothing is ready, and no timer will ever make it so")
        self.now += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose time stands still while anything runs and jumps to the next timer when nothing does."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def set_time(self, now: float) -> None:
        """Set the clock. Timers that are set are due at the times for which they were set."""
        self._jumping.now = now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        self._jumping.executing += 1
        # Without the variables of the caller: the callbacks of an agent are dropped when it ends.
        future.add_done_callback(self._executed, context=Context())
        return future

    async def shutdown_default_executor(self) -> None:
        self._jumping.executing += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._jumping.executing -= 1

    def _executed(self, _: asyncio.Future[Any]) -> None:
        self._jumping.executing -= 1


class GuardedVirtualTimeLoop(Guarded, VirtualTimeLoop):  # type: ignore[misc]
    """Virtual time, with the guards of the daemon's loop."""


class GuardedSelectorLoop(Guarded, asyncio.SelectorEventLoop):  # type: ignore[misc]
    """The loop of asyncio, with the guards of the daemon's loop."""


class Clock:
    """A clock that the test sets, for code that gets the time from a function."""

    now = 0.0

    def __call__(self) -> float:
        return self.now
