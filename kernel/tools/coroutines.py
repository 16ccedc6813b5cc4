"""Runs the coroutine of an `async def` tool in its worker thread, in an event loop of its own.

Used by the tool subsystem. Unlike a plain function, a coroutine can be cancelled when its caller gives up. It never
runs on the loop of the kernel, so a tool that computes or blocks there holds no agent.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any


class CoroutineRun:
    """One coroutine at most. `run` is called in the worker thread, `cancel` in any other."""

    __slots__ = ("_cancelled", "_loop", "_mutex", "_task")

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._cancelled = False
        self._loop: asyncio.AbstractEventLoop | None = None  # while the coroutine runs
        self._task: asyncio.Task[Any] | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return what the coroutine returns. Raises `CancelledError` if it was cancelled before or during its run."""
        return asyncio.run(self._main(coroutine))

    def cancel(self) -> None:
        """Cancel the coroutine. It may refuse, and takes its time to end."""
        with self._mutex:
            self._cancelled = True
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)

    async def _main(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        with self._mutex:
            if self._cancelled:
                coroutine.close()
                raise asyncio.CancelledError
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            return await coroutine
        finally:
            with self._mutex:
                self._loop = None
