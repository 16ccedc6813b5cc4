"""The concurrency limit of one tool: places for running calls, and a fair queue of calls that wait for a place.

Used by the tool subsystem. A call holds its place until the function has returned, even if the caller gave up earlier.
So a tool whose functions hang never occupies more threads than it has places (its `concurrency`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from ipc.errors import Busy, TimedOut
from kernel.core.fiber import PARK
from kernel.core.process import Thread
from kernel.core.timers import Timer
from kernel.programs.tool import Tool

MAX_QUEUE = 10_000  # calls that may wait for a place


class Waiter:
    """A thread in the queue. `leave` grants it a place while it still waits, so no other thread can overtake it."""

    __slots__ = ("granted", "thread")

    def __init__(self, thread: Thread) -> None:
        self.thread = thread
        self.granted = False


class ConcurrencyLimit:
    """The places and counts of one tool. `running` functions hold a place; `abandoned` ones have no caller any more."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.running = 0
        self.abandoned = 0
        self.calls = 0
        self.failures = 0
        self.queue: deque[Waiter] = deque()

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
        waiter = Waiter(cast("Thread", asyncio.current_task()))
        self.queue.append(waiter)
        try:
            while not waiter.granted:
                if timer.expired:
                    raise TimedOut(f"tool {self.tool.name} had no free place in time", tool=self.tool.name)
                waiter.thread.waits_for = f"tool {self.tool.name}"
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
