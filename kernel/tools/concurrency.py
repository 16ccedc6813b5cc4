"""The concurrency limit of one tool: places for running calls, and a fair queue of calls that wait for a place.

Used by the tool subsystem. A call holds its place until the function has returned, even if the caller gave up earlier.
So a tool whose functions hang never occupies more threads than it has places (its `concurrency`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from ipc.errors import Busy, TimedOut
from ipc.syscalls import WaitFacts
from kernel.core.fiber import PARK
from kernel.core.plain_wait import named
from kernel.core.process import Thread
from kernel.core.timers import Timer
from kernel.lib.wording import counted, quoted, verb
from kernel.programs.tool import Tool

MAX_QUEUE = 10_000  # calls that may wait for a place
QUEUED, RUNNING, PAUSED = "queued", "running", "paused"  # the phases of a call


class Waiter:
    """A thread in the queue. `leave` grants it a place while it still waits, so no other thread can overtake it."""

    __slots__ = ("granted", "thread")

    def __init__(self, thread: Thread) -> None:
        self.thread = thread
        self.granted = False


class ToolWait:
    """The wait of a thread in a call of a tool: `QUEUED` for a place, `RUNNING`, or `PAUSED` after a failure."""

    __slots__ = ("_limit", "_phase")
    stage = ""

    def __init__(self, limit: ConcurrencyLimit, phase: str) -> None:
        self._limit = limit
        self._phase = phase

    def __str__(self) -> str:
        return f"tool {self._limit.tool.name}"

    def ended_by(self) -> None:
        """None: a worker thread of Linux ends the wait, or the clock."""

    def explain(self, thread: Thread) -> WaitFacts:
        limit = self._limit
        name, places = quoted(limit.tool.name), limit.tool.mark.concurrency
        if self._phase == RUNNING:
            return WaitFacts(kind="tool", doing=f"waiting for the result of tool {name}", ends="the function returns")
        if self._phase == PAUSED:
            doing = f"pausing before another attempt with tool {name}, which failed"
            return WaitFacts(kind="tool", doing=doing, timer="it tries again")
        line = [waiter.thread for waiter in limit.queue]
        place = line.index(thread) if thread in line else 0
        taken = f"{'the only place of the tool is' if places == 1 else f'all {places} places of the tool are'} taken by"
        orphans = verb(limit.abandoned, "a function whose caller", "functions whose callers") + " gave up"
        abandoned = f"{taken} {orphans}"
        if limit.callers:
            abandoned = f"{limit.abandoned} of them {verb(limit.abandoned, 'is', 'are')} taken by {orphans}"
        return WaitFacts(
            kind="tool",
            doing=f"waiting for a place of tool {name}",
            place=place + 1,
            line=max(len(line), 1),
            ahead=named(other.process for other in line[:place]),
            ahead_count=place,
            held=f"{taken[0].upper()}{taken[1:]}" if limit.callers else "",
            holders=named(caller.process for caller in limit.callers),
            holder_count=len(dict.fromkeys(caller.process for caller in limit.callers)),
            state=abandoned if limit.abandoned else "",
            ends=f"{counted(place + 1, 'call')} of the tool {'has' if place == 0 else 'have'} returned",
        )


class ConcurrencyLimit:
    """The places and counts of one tool. `running` functions hold a place; `abandoned` ones have no caller any more."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.running = 0
        self.abandoned = 0
        self.calls = 0
        self.failures = 0
        self.queue: deque[Waiter] = deque()
        self.callers: dict[Thread, None] = {}  # the threads that wait for a running function

    async def enter(self, timer: Timer, *, wait: bool) -> None:
        """Take a place, in the order of arrival.

        Raises `TimedOut`. If no place is free, raises `Busy` without `wait`, or with a full queue.
        """
        if self.running < self.tool.mark.concurrency and not self.queue:
            self.running += 1
            return
        if not wait or len(self.queue) >= MAX_QUEUE:
            raise Busy(
                f"all {self.tool.mark.concurrency} places of tool {self.tool.name} are taken "
                f"({self.abandoned} by functions whose callers gave up); try again later",
                retry_after=1.0,
                tool=self.tool.name,
            )
        waiter, place = Waiter(cast("Thread", asyncio.current_task())), ToolWait(self, QUEUED)
        self.queue.append(waiter)
        try:
            while not waiter.granted:
                if timer.expired:
                    raise TimedOut(f"tool {self.tool.name} had no free place in time", tool=self.tool.name)
                waiter.thread.waits_for = place
                await PARK
        except BaseException:
            if waiter.granted:
                self.leave()
            else:
                self.queue.remove(waiter)
            raise

    def leave(self) -> None:
        """Free a place and grant it to the next waiting thread."""
        self.running -= 1
        while self.queue and self.running < self.tool.mark.concurrency:
            waiter = self.queue.popleft()
            waiter.granted = True
            self.running += 1
            waiter.thread.wake()
