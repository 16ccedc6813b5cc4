"""The dispatcher: the ready queue of threads, by their priority and first in first out within it.

Called by threads that become ready. It hands the loop back after a bounded time and number of steps, so that sockets
and timers get their turn, and holds back the threads that are suspended. It never blocks.

Nothing starves (aging: Silberschatz, Galvin, Gagne, Operating System Concepts, 5.3.4). As the balance set manager of
Windows does with threads that were ready for too long (Windows Internals, "Priority boosts for CPU starvation"), it
gives one step to a thread of lower priority from time to time; but it counts steps instead of reading a clock: one
of `AGING` steps goes to the queue that has gone longest without one of these. With n priorities ready, the k-th of its
queue runs within k * (n - 1) * AGING steps. That costs nothing while all that is ready has one priority.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter

from kernel.core.fiber import READY, SUSPENDED
from kernel.core.process import Process, Thread
from kernel.core.timers import TimerQueue
from kernel.dispatch.instruments import Instruments

STEPS_PER_TURN = 64
TURN_SECONDS = 0.005  # after which the loop gets its turn, however few steps that were
AGING = 32  # of the steps taken while several priorities are ready, the one that a lower one gets


class Dispatcher:
    """Runs ready threads, the most urgent first. `running` is the thread whose step runs, or ran last.

    `on_slow` are called with a thread whose step held the loop for more than `slow_step` seconds, and how long it did.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, instruments: Instruments | None = None) -> None:
        self.loop = loop
        self.timers = TimerQueue(loop)
        self.instruments = Instruments() if instruments is None else instruments
        self.slow_step = float("inf")
        self.on_slow: list[Callable[[Thread, float], None]] = []
        self.running: Thread
        self._ready: dict[int, deque[Thread]] = {}
        self._contested = 0  # steps taken while several priorities were ready, since the last one of aging
        self._scheduled = False

    def push(self, thread: Thread) -> None:
        """Put `thread` at the end of its queue."""
        process = thread.process
        if process.held is not None and (process.suspended or thread.suspended):
            thread.state = SUSPENDED
            process.held.append(thread)
            return
        thread.state = READY
        queue = self._ready.get(thread.priority)
        if queue is None:
            queue = self._ready[thread.priority] = deque()
        queue.append(thread)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._run)

    def hold(self, process: Process, thread: Thread | None = None) -> None:
        """Step `thread`, or no thread of `process`, until `release`."""
        if thread is None:
            process.suspended = True
        else:
            thread.suspended = True
        if process.held is None:
            process.held = []
        if any(thread.state is READY for thread in process.threads):
            self._take_out(process)

    def release(self, process: Process, thread: Thread | None = None) -> None:
        """Undo `hold`. What was held back goes on in the order in which it became ready."""
        if thread is None:
            process.suspended = False
        else:
            thread.suspended = False
        held = process.held
        still = process.suspended or any(thread.suspended for thread in process.threads)
        process.held = [] if still else None
        for waiting in held or ():
            if not waiting.done():  # given up while it was held
                self.push(waiting)

    def _take_out(self, process: Process) -> None:
        """Hold back the ready threads of `process` that may not run, so that no step has to ask whether it may."""
        for priority in sorted(self._ready, reverse=True):
            queue = self._ready[priority]
            for thread in [thread for thread in queue if thread.process is process]:
                if process.suspended or thread.suspended:
                    queue.remove(thread)
                    self.push(thread)

    def reprioritise(self, thread: Thread, priority: int) -> None:
        """Give `thread` a new priority. If it is ready, it moves to the end of the queue of that one."""
        old, thread.priority = thread.priority, priority
        queue = self._ready.get(old)
        if thread.state is READY and priority != old and queue is not None:
            queue.remove(thread)
            self.push(thread)

    def _run(self) -> None:
        ready = self._ready
        observed = self.instruments if self.instruments.steps else None
        queue: deque[Thread] | None = None
        now = perf_counter()
        end = now + TURN_SECONDS
        for _ in range(STEPS_PER_TURN):
            if not queue or len(ready) > 1:
                queue = self._choose()
                if queue is None:
                    break
            self.running = thread = queue.popleft()
            now = thread.step(now) if observed is None else observed.step(thread, now)
            if now > end:
                break
        # A turn ends with the step that used its time up, so one look after the last step finds every slow one. It
        # sees that step's time less what was left of the turn.
        if now - end > self.slow_step:
            for hook in self.on_slow:
                hook(self.running, now - end)
        if queue or any(ready.values()):
            self.loop.call_soon(self._run)
        else:
            self._scheduled = False

    def _choose(self) -> deque[Thread] | None:
        """The queue that is next: the most urgent one, but for one of `AGING` steps. None if no thread is ready.

        Empty queues are given up, but for the last one.
        """
        ready = self._ready
        if len(ready) > 1:
            for priority in [priority for priority, queue in ready.items() if not queue]:
                del ready[priority]
            if not ready:
                return None
            if len(ready) > 1:
                self._contested += 1
                if self._contested >= AGING:
                    self._contested = 0
                    return self._aged()
        return ready[max(ready)] or None

    def _aged(self) -> deque[Thread]:
        """The queue that has waited longest for such a step, of all but the most urgent one."""
        # A queue stands where it was made, and moves to the end when it gets such a step: the first has waited longest.
        highest = max(self._ready)
        priority = next(priority for priority in self._ready if priority != highest)
        queue = self._ready[priority] = self._ready.pop(priority)
        return queue
