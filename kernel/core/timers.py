"""TimerQueue: time limits of waiting threads, all on one timer of the loop.

Set by whoever parks a thread for a limited time. Nearly every timer is cancelled before its time (the reply came), so
that setting and cancelling one is what must be cheap: a heap whose cancelled entries are dropped when they come up or
outnumber the others, instead of a timer of the loop each, which costs several times as much.
"""

from __future__ import annotations

import asyncio
from heapq import heapify, heappop, heappush
from math import inf
from typing import Protocol

SPARSE = 64  # cancelled timers below which the heap is not worth rebuilding


class HasTimers(Protocol):
    """The dispatcher, as an timer sees it."""

    timers: TimerQueue


class Sleeper(Protocol):
    """A thread, as an timer sees it: `timers` counts those set for it."""

    timers: int

    @property
    def dispatcher(self) -> HasTimers: ...

    def wake(self) -> None: ...


class TimerQueue:
    """The timers of all threads of one kernel."""

    __slots__ = ("_cancelled", "_heap", "_loop", "_number", "_struck_at", "_timer", "new", "time")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.time = loop.time
        self._heap: list[tuple[float, int, Timer]] = []
        self.new: list[Timer] = []
        self._number = 0
        self._cancelled = 0
        self._timer: asyncio.TimerHandle | None = None
        self._struck_at = inf  # the loop time for which the timer is set

    def take_in_soon(self) -> None:
        """Move the timers in `new` to the heap on the next turn of the loop.

        The first timer of a turn calls this. An timer that is cancelled before the next turn never reaches the heap.
        """
        self._loop.call_soon(self._take_in)

    def cancelled(self) -> None:
        """One of the timers in the heap was cancelled."""
        self._cancelled += 1
        if self._cancelled > SPARSE and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[2].over]
            heapify(self._heap)
            self._cancelled = 0

    def _take_in(self) -> None:
        new, self.new = self.new, []
        heap = self._heap
        for timer in new:
            if not timer.over:
                timer.in_heap = True
                self._number += 1
                heappush(heap, (timer.until, self._number, timer))
        if heap and heap[0][0] < self._struck_at:
            self._set(heap[0][0])

    def _set(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._struck_at = until
        self._timer = self._loop.call_at(until, self._strike)

    def _strike(self) -> None:
        # The timer may strike early (uvloop rounds to milliseconds): what it was set for has come none the less.
        now = max(self._struck_at, self.time())
        self._timer, self._struck_at = None, inf
        heap = self._heap
        while heap and (heap[0][0] <= now or heap[0][2].over):
            timer = heappop(heap)[2]
            if timer.over:
                self._cancelled -= 1
            else:
                timer.ring()
        if heap:
            self._set(heap[0][0])


class Timer:
    """Wakes `thread` after `seconds`, if given; `rung` says that the time has come, and is what to ask.

    `until` is that time on the clock of the loop. Whoever set it cancels it, once, however the wait went, and has seen
    that `seconds` is a number.
    """

    __slots__ = ("_thread", "in_heap", "over", "rung", "until")

    def __init__(self, thread: Sleeper, seconds: float | None) -> None:
        self._thread = thread
        self.in_heap = False
        if seconds is None:
            self.over, self.rung, self.until = True, False, inf
            return
        timers = thread.dispatcher.timers
        self.until = timers.time() + seconds
        if seconds > 0:
            self.over = self.rung = False
            thread.timers += 1
            if not timers.new:
                timers.take_in_soon()
            timers.new.append(self)
        else:
            self.over = self.rung = True

    def cancel(self) -> None:
        """Forget the time."""
        if not self.over:
            self.over = True
            self._thread.timers -= 1
            if self.in_heap:
                self._thread.dispatcher.timers.cancelled()

    def ring(self) -> None:
        """The time has come."""
        self.over = self.rung = True
        self._thread.timers -= 1
        self._thread.wake()
