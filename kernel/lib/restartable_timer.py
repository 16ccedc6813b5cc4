"""A timer that is started and stopped again and again. Used by the runtimes of models and the lives of drivers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class RestartableTimer:
    """Calls `action` once for each start, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
        self._loop = loop
        self._action = action
        self._handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float) -> None:
        """Strike in so many seconds; one that runs already runs on as it is."""
        if self._handle is None:
            self._handle = self._loop.call_later(seconds, self._strike)

    def stop(self) -> None:
        """Strike no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _strike(self) -> None:
        self._handle = None
        self._action()
