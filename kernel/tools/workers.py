"""Worker threads for functions that may take long or never return.

The tool subsystem calls this module, from the loop only. A Python thread cannot be stopped, so workers are daemon
threads: a worker that hangs does not delay the exit of llmosd, as a thread of `concurrent.futures` would. This module
never limits the number of threads: the concurrency limits of the tools do.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

MAX_IDLE = 8  # idle threads

Job = tuple[Callable[[], None], Callable[[], None]]


class Workers:
    """Starts threads as needed, and retains up to `MAX_IDLE` idle ones for the next functions."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._idle: list[SimpleQueue[Job | None]] = []
        self._closed = False
        self.threads = 0

    def submit(self, function: Callable[[], None], done: Callable[[], None]) -> None:
        """Run `function`, which must not raise, in a thread, then `done` on the loop."""
        if self._idle:
            inbox = self._idle.pop()
        else:
            inbox = SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), name="llmosd tool", daemon=True).start()
            self.threads += 1
        inbox.put((function, done))

    def close(self) -> None:
        """End the idle threads now, and each busy thread when its function returns."""
        self._closed = True
        for inbox in self._idle:
            inbox.put(None)
        self.threads -= len(self._idle)
        self._idle.clear()

    def _serve(self, inbox: SimpleQueue[Job | None]) -> None:
        """The code of a worker thread: run the functions from `inbox`, until it gets None or the loop is closed."""
        while (job := inbox.get()) is not None:
            function, done = job
            with suppress(BaseException):  # raised in this thread from outside, as the function never raises
                function()
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._free, inbox, done)
                del job, function, done  # an idle thread holds no result
                continue
            return

    def _free(self, inbox: SimpleQueue[Job | None], done: Callable[[], None]) -> None:
        if self._closed or len(self._idle) >= MAX_IDLE:
            self.threads -= 1
            inbox.put(None)
        else:
            self._idle.append(inbox)
        done()
