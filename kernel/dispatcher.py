"""The dispatcher: the ready queue of threads, by priority of their process and first in first out within it.

Called by threads that become ready. It hands the loop back after a bounded time and number of steps, so that sockets
and timers get their turn, and holds back the threads of suspended processes. It never blocks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter

from kernel.alarms import Alarms
from kernel.thread import READY, SUSPENDED, Thread

STEPS_PER_TURN = 64
TURN_SECONDS = 0.005  # after which the loop gets its turn, however few steps that were

Ready = tuple[Thread, BaseException | None]


class Dispatcher:
    """Runs ready threads, the most urgent first."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.alarms = Alarms(loop)
        self._ready: dict[int, deque[Ready]] = {}
        self._count = 0
        self._scheduled = False

    def push(self, thread: Thread, exc: BaseException | None = None) -> None:
        """Put `thread` at the end of its queue; its next step throws `exc` into it, if given."""
        process = thread.process
        if process.suspended:
            thread.state = SUSPENDED
            process.held.append((thread, exc))
            return
        thread.state = READY
        queue = self._ready.get(process.priority)
        if queue is None:
            queue = self._ready[process.priority] = deque()
        queue.append((thread, exc))
        self._count += 1
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._run)

    def _run(self) -> None:
        ready = self._ready
        steps = STEPS_PER_TURN
        end = perf_counter() + TURN_SECONDS
        while self._count and steps and (steps == STEPS_PER_TURN or perf_counter() < end):
            urgency = max(ready) if len(ready) > 1 else next(iter(ready))
            queue = ready[urgency]
            if not queue:
                del ready[urgency]
                continue
            steps -= 1
            self._count -= 1
            thread, exc = queue.popleft()
            if thread.process.suspended:
                self.push(thread, exc)
            else:
                thread.step(exc)
        if self._count:
            self.loop.call_soon(self._run)
        else:
            self._scheduled = False
