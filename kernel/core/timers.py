"""Timers: time limits of waiting threads, all on one timer of the loop.

The code that parks a thread for a limited time sets a timer. Nearly every timer is cancelled before its time, because
the reply arrived, so setting and cancelling a timer must be cheap. The heap drops cancelled timers when they reach the
top or outnumber the others. A loop timer for each thread would cost several times as much. A timer never raises: the
thread that it wakes looks at `expired`.
"""

from __future__ import annotations

import asyncio
from heapq import heapify, heappop, heappush
from math import inf
from typing import Protocol

SPARSE = 64  # a heap with at most so many cancelled timers is not rebuilt


class HasTimers(Protocol):
    """The dispatcher, as a timer sees it."""

    timers: TimerQueue


class Sleeper(Protocol):
    """A thread, as a timer sees it. `timers` counts the timers that are set for it."""

    timers: int

    @property
    def dispatcher(self) -> HasTimers: ...

    def wake(self) -> None: ...


class TimerQueue:
    """The timers of all threads of one kernel."""

    __slots__ = ("_cancelled", "_fires_at", "_heap", "_loop", "_number", "_timer", "new", "time")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.time = loop.time
        self._heap: list[tuple[float, int, Timer]] = []
        self.new: list[Timer] = []  # set in this turn of the loop, and not in the heap yet
        self._number = 0
        self._cancelled = 0
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = inf  # the loop time for which `_timer` is set

    def insert_soon(self) -> None:
        """Move the timers in `new` to the heap on the next turn of the loop.

        The first timer of a turn calls this. A timer that is cancelled before the next turn never reaches the heap.
        """
        self._loop.call_soon(self._insert_new)

    def cancelled(self) -> None:
        """Count a cancelled timer of the heap. If more than half of the heap is cancelled, rebuild it without these."""
        self._cancelled += 1
        if self._cancelled == len(self._heap):
            self._heap.clear()
            self._cancelled = 0
        elif self._cancelled > SPARSE and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[2].over]
            heapify(self._heap)
            self._cancelled = 0

    def until(self, thread: Sleeper) -> float | None:
        """The loop time of the next timer of `thread`; None if none is set. Looks at all timers."""
        if not thread.timers:
            return None
        timers = (*(timer for _, _, timer in self._heap), *self.new)
        return min((timer.until for timer in timers if not timer.over and timer.thread is thread), default=None)

    def _insert_new(self) -> None:
        new, self.new = self.new, []
        heap = self._heap
        for timer in new:
            if not timer.over:
                timer.in_heap = True
                self._number += 1
                heappush(heap, (timer.until, self._number, timer))
        if heap and heap[0][0] < self._fires_at:
            self._set(heap[0][0])

    def _set(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_at = until
        self._timer = self._loop.call_at(until, self._fire)

    def _fire(self) -> None:
        # The loop may call this early (uvloop rounds to milliseconds). The timers for that time are due nevertheless.
        now = max(self._fires_at, self.time())
        self._timer, self._fires_at = None, inf
        heap = self._heap
        try:
            while heap and (heap[0][0] <= now or heap[0][2].over):
                timer = heappop(heap)[2]
                if timer.over:
                    self._cancelled -= 1
                else:
                    timer.fire()
        finally:  # if the end of one timer fails, the others still have their ends
            if heap:
                self._set(heap[0][0])


class Timer:
    """Wakes `thread` after `seconds`, or never if `seconds` is None. `expired` says whether the time is up.

    `until` is the end of the time on the clock of the loop. `over`: the timer has fired or was cancelled. The
    caller has checked that `seconds` is a number or None, and must cancel the timer after the wait, however that ended.
    """

    __slots__ = ("expired", "in_heap", "over", "thread", "until")

    def __init__(self, thread: Sleeper, seconds: float | None) -> None:
        self.thread = thread
        self.in_heap = False
        if seconds is None:
            self.over, self.expired, self.until = True, False, inf
            return
        timers = thread.dispatcher.timers
        self.until = timers.time() + seconds
        if seconds > 0:
            self.over = self.expired = False
            thread.timers += 1
            if not timers.new:
                timers.insert_soon()
            timers.new.append(self)
        else:
            self.over = self.expired = True

    def cancel(self) -> None:
        """Stop the timer, which then never wakes the thread. Does nothing if the timer has fired or was cancelled."""
        if not self.over:
            self.over = True
            self.thread.timers -= 1
            if self.in_heap:
                timers = self.thread.dispatcher.timers
                del self.thread  # which may have ended long before the heap drops this
                timers.cancelled()

    def fire(self) -> None:
        """The time is up: wake the thread."""
        self.over = self.expired = True
        self.thread.timers -= 1
        self.thread.wake()
