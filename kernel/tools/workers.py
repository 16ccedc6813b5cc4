"""Worker threads for functions that may take long or never return.

Used by the tool subsystem, on the loop only. A Python thread cannot be stopped, so these are daemon threads: one that
hangs holds up nobody's exit, as those of `concurrent.futures` would. How many there are is bounded by who submits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

KEPT = 8  # idle threads

Work = tuple[Callable[[], None], Callable[[], None]]


class Workers:
    """Idle threads are kept for the next function, up to `KEPT`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._idle: list[SimpleQueue[Work | None]] = []
        self._closed = False
        self.threads = 0

    def submit(self, function: Callable[[], None], done: Callable[[], None]) -> None:
        """Run `function`, which must not raise, in a thread, and then `done` on the loop."""
        if self._idle:
            inbox = self._idle.pop()
        else:
            inbox = SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), name="llmosd tool", daemon=True).start()
            self.threads += 1
        inbox.put((function, done))

    def close(self) -> None:
        """Let idle threads end, and busy ones when they return, if they do."""
        self._closed = True
        for inbox in self._idle:
            inbox.put(None)
        self.threads -= len(self._idle)
        self._idle.clear()

    def _serve(self, inbox: SimpleQueue[Work | None]) -> None:
        """Runs in the worker thread."""
        while (work := inbox.get()) is not None:
            function, done = work
            function()
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._free, inbox, done)
                continue
            return

    def _free(self, inbox: SimpleQueue[Work | None], done: Callable[[], None]) -> None:
        if self._closed or len(self._idle) >= KEPT:
            self.threads -= 1
            inbox.put(None)
        else:
            self._idle.append(inbox)
        done()
