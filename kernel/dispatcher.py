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


class Dispatcher:
    """Runs ready threads, the most urgent first. `running` is the thread whose step runs, or ran last."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.alarms = Alarms(loop)
        self.running: Thread
        self._ready: dict[int, deque[Thread]] = {}
        self._count = 0
        self._scheduled = False

    def push(self, thread: Thread) -> None:
        """Put `thread` at the end of its queue."""
        process = thread.process
        if process.suspended:
            thread.state = SUSPENDED
            process.held.append(thread)
            return
        thread.state = READY
        queue = self._ready.get(process.priority)
        if queue is None:
            queue = self._ready[process.priority] = deque()
        queue.append(thread)
        self._count += 1
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._run)

    def _run(self) -> None:
        ready = self._ready
        queue: deque[Thread] = deque()
        steps = STEPS_PER_TURN
        now = perf_counter()
        end = now + TURN_SECONDS
        while self._count and steps and now <= end:
            if not queue or len(ready) > 1:
                queue = self._most_urgent()
            steps -= 1
            self._count -= 1
            self.running = thread = queue.popleft()
            if thread.process.suspended:
                self.push(thread)
            else:
                now = thread.step(now)
        if self._count:
            self.loop.call_soon(self._run)
        else:
            self._scheduled = False

    def _most_urgent(self) -> deque[Thread]:
        """The first queue that is not empty, of which there is one; the empty ones before it are given up."""
        ready = self._ready
        while True:
            urgency = max(ready)
            if ready[urgency]:
                return ready[urgency]
            del ready[urgency]
