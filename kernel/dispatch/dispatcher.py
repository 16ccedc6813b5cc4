"""The dispatcher: the ready queue of threads, by priority, and first in first out within a priority.

A thread that becomes ready is pushed to the dispatcher, which runs it in steps, each to the thread's next wait. The
dispatcher gives the loop back after a bounded time and number of steps, so that sockets and timers get their turn. It
holds back suspended threads. It never blocks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter

import structlog

from kernel.core.fiber import NEW, READY, SUSPENDED
from kernel.core.process import Process, Thread
from kernel.core.timers import TimerQueue
from kernel.dispatch.clean_ups import CleanUps
from kernel.dispatch.instruments import Instruments
from kernel.lib.failures import traceback_text

STEPS_PER_TURN = 64
TURN_SECONDS = 0.005  # the loop gets its turn after this time, even if fewer steps were taken
AGING = 32  # of so many steps taken while several priorities are ready, one goes to a lower priority

log = structlog.get_logger("kernel.dispatch")


class Dispatcher:
    """Runs ready threads, the most urgent first. `running` is the thread whose step runs now, or ran last.

    Aging lets no thread starve (Silberschatz, Galvin, Gagne, Operating System Concepts, 5.3.4). From time to time a
    step goes to a thread of lower priority, as the balance set manager of Windows does for threads that were ready for
    too long (Windows Internals, "Priority boosts for CPU starvation"). The dispatcher counts steps instead of reading a
    clock: one of `AGING` steps goes to the queue that has waited longest for such a step, leaving out the most urgent
    queue. With n priorities ready, the k-th thread of a queue runs within k * (n - 1) * AGING steps. Aging costs
    nothing while all ready threads have the same priority.

    If a step of a thread overruns the turn by more than `slow_step` seconds, the hooks `on_slow` are called with the
    thread and the seconds by which the step overran.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, instruments: Instruments | None = None) -> None:
        self.loop = loop
        self.timers = TimerQueue(loop)
        self.instruments = Instruments() if instruments is None else instruments
        self.slow_step = float("inf")
        self.on_slow: list[Callable[[Thread, float], None]] = []
        self.running: Thread
        self._ready: dict[int, deque[Thread]] = {}
        self._gave_way: dict[int, int] = {}  # by priority, how many threads have given up the loop for a turn
        self.clean_ups = CleanUps()
        self._contested_steps = 0  # steps with several priorities ready, since the last step by aging
        self._scheduled = False

    def push(self, thread: Thread) -> None:
        """Put `thread`, which is ready, at the end of the queue of its priority. Hold it back if it is suspended."""
        process = thread.process
        if process.held_back is not None and self._is_held(thread):
            thread.state = SUSPENDED
            process.held_back.append(thread)
            return
        thread.state = READY
        queue = self._ready.get(thread.priority)
        if queue is None:
            queue = self._ready[thread.priority] = deque()
        queue.append(thread)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._run)

    def give_way(self, thread: Thread) -> None:
        """Push `thread`, which has given up the loop for one turn, after all callbacks that are scheduled now.

        So `asyncio.sleep(0)` means what it means in asyncio. Until then less urgent threads run by aging only.
        """
        thread.state = READY
        priority = thread.priority
        self._gave_way[priority] = self._gave_way.get(priority, 0) + 1
        if priority not in self._ready:
            self._ready[priority] = deque()
        self.loop.call_soon(self._come_back, thread, priority)

    def _come_back(self, thread: Thread, priority: int) -> None:
        left = self._gave_way[priority] - 1
        if left:
            self._gave_way[priority] = left
        else:
            del self._gave_way[priority]
        if not thread.done():  # it may have been abandoned
            self.push(thread)

    def hold(self, process: Process, thread: Thread | None = None) -> None:
        """Do not step `thread`, or by default any thread of `process`, until `release`."""
        if thread is None:
            process.suspended = True
        else:
            thread.suspended = True
        if process.held_back is None:
            process.held_back = []
        if any(thread.state is READY for thread in process.threads):
            self._hold_back(process)

    def release(self, process: Process, thread: Thread | None = None) -> None:
        """Undo `hold`. Push the threads that were held back, in the order in which they became ready."""
        if thread is None:
            process.suspended = False
        else:
            thread.suspended = False
        if process.held_back is not None:
            self._push_held(process)

    def clean_up(self, thread: Thread) -> None:
        """Step `thread`, which is killed, until it is done or `end_clean_up`, even while its process is suspended."""
        self.clean_ups.begin(thread)
        self.release(thread.process, thread)

    def end_clean_up(self, thread: Thread) -> None:
        """Undo `clean_up`: what the clean-up has started is held back again."""
        self.clean_ups.end(thread)
        if thread.process.held_back is not None:
            self._hold_back(thread.process)

    def cancelled(self, thread: Thread) -> None:
        """A cancellation will be thrown into `thread`, which is held back. It may be part of a clean-up."""
        if self.clean_ups and self.clean_ups.includes(thread):
            self.loop.call_soon(self._push_cancelled, thread)

    def _push_cancelled(self, thread: Thread) -> None:
        # The callback for the first of many cancelled threads pushes them all.
        if thread.state is SUSPENDED and self.clean_ups.includes(thread):
            self._push_held(thread.process)

    def _push_held(self, process: Process) -> None:
        """Push the threads that were held back. Those that may not run are held back again, in the same order."""
        held = process.held_back
        still = process.suspended or any(thread.suspended for thread in process.threads)
        process.held_back = [] if still else None
        for waiting in held or ():
            if not waiting.done():  # a thread may be abandoned while it is held back
                self.push(waiting)

    def _is_held(self, thread: Thread) -> bool:
        """Whether a suspension holds `thread` back."""
        if not (thread.process.suspended or thread.suspended):
            return False
        if not self.clean_ups:
            return True
        if thread.state is NEW:
            self.clean_ups.started(thread, self.running)
        return not self.clean_ups.includes(thread)

    def _hold_back(self, process: Process) -> None:
        """Hold back the ready threads of `process` that may not run, so that steps need not check this."""
        for priority in sorted(self._ready, reverse=True):
            queue = self._ready[priority]
            for thread in [thread for thread in queue if thread.process is process]:
                if self._is_held(thread):
                    queue.remove(thread)
                    self.push(thread)

    def reprioritise(self, thread: Thread, priority: int) -> None:
        """Give `thread` a new priority. A ready thread moves to the end of the queue of that priority."""
        old, thread.priority = thread.priority, priority
        queue = self._ready.get(old)
        if thread.state is READY and priority != old and queue is not None and thread in queue:
            queue.remove(thread)
            self.push(thread)

    def _run(self) -> None:
        ready = self._ready
        observed = self.instruments if self.instruments.steps else None
        queue: deque[Thread] | None = None
        now = perf_counter()
        end = now + TURN_SECONDS
        try:
            for _ in range(STEPS_PER_TURN):
                if not queue or len(ready) > 1:
                    queue = self._next_queue()
                    if queue is None:
                        break
                self.running = thread = queue.popleft()
                now = thread.step(now) if observed is None else observed.step(thread, now)
                if now > end:
                    break
        except BaseException as error:  # a mistake in the kernel must end no more than the process of this thread
            log.error(
                "a step failed inside the kernel",
                pid=self.running.process.pid,
                exception=traceback_text(error, whole=True),
            )
            self.running.fail(error)
            queue = None
        finally:  # whatever fails, the threads go on
            if queue or self._gave_way or any(ready.values()):
                self.loop.call_soon(self._run)  # after the callbacks that push the threads which gave way
            else:
                self._scheduled = False
        # A step that exceeds the time of the turn ends the turn, so this check finds every slow step. It measures by
        # how much the step overran the turn, not the length of the step.
        if now - end > self.slow_step:
            for hook in self.on_slow:
                hook(self.running, now - end)

    def _next_queue(self) -> deque[Thread] | None:
        """The queue for the next step: the most urgent, except in one of `AGING` steps.

        None if no thread is ready, or if the most urgent thread has given up the loop for this turn. If there are
        several queues, drops the empty ones.
        """
        ready = self._ready
        if len(ready) > 1:
            for priority in [one for one, queue in ready.items() if not queue and one not in self._gave_way]:
                del ready[priority]
            if not ready:
                return None
            if len(ready) > 1 and ready[max(ready)]:
                self._contested_steps += 1
                if self._contested_steps >= AGING:
                    self._contested_steps = 0
                    return self._longest_waiting_queue()
        return ready[max(ready)] or None

    def _longest_waiting_queue(self) -> deque[Thread]:
        """The queue, other than the most urgent, that has waited longest for a step by aging.

        It is the most urgent if the threads of all others have given up the loop for this turn.
        """
        # A new queue is added at the end, and a queue moves to the end when it gets a step by aging. So the first has
        # waited longest.
        highest = max(self._ready)
        lower = (priority for priority, queue in self._ready.items() if queue and priority != highest)
        priority = next(lower, highest)
        queue = self._ready[priority] = self._ready.pop(priority)
        return queue
