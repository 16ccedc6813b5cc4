"""A timer that can be started and stopped repeatedly.

Used by model runtimes and driver supervisors. It never runs its action more than once per start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class RestartableTimer:
    """Calls `action` once after each start, unless it is stopped first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
        self._loop = loop
        self._action = action
        self._handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float) -> None:
        """Call the action in `seconds` seconds. A timer that runs already is not changed."""
        if self._handle is None:
            self._handle = self._loop.call_later(seconds, self._strike)

    def stop(self) -> None:
        """Stop the timer, if it runs. The action is not called."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _strike(self) -> None:
        self._handle = None
        self._action()
