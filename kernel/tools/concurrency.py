"""A device: the places of one tool, and who waits in line for one.

Used by the tool subsystem. A place is held until the function has really returned, whether or not anyone still waits
for it; so a tool that hangs never takes more threads than its concurrency.
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

QUEUE = 10_000  # calls that may wait in line


class Waiter:
    """A thread's turn in the line. The place is given, not offered: nobody can come between."""

    __slots__ = ("given", "thread")

    def __init__(self, thread: Thread) -> None:
        self.thread = thread
        self.given = False


class ConcurrencyLimit:
    """Counts of one tool. `running` functions hold a place, and `abandoned` of them have no caller any more."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.running = 0
        self.abandoned = 0
        self.calls = 0
        self.failures = 0
        self.queue: deque[Waiter] = deque()

    async def enter(self, timer: Timer, *, wait: bool) -> None:
        """Take a place, in the order of coming. Raises `Busy` and `TimedOut`."""
        if self.running < self.tool.mark.concurrency and not self.queue:
            self.running += 1
            return
        if not wait or len(self.queue) >= QUEUE:
            raise Busy(
                f"all {self.tool.mark.concurrency} places of tool {self.tool.name} are taken "
                f"({self.abandoned} by functions that nobody waits for any more); try later",
                retry_after=1.0,
                tool=self.tool.name,
            )
        ticket = Waiter(cast("Thread", asyncio.current_task()))
        self.queue.append(ticket)
        try:
            while not ticket.given:
                if timer.rung:
                    raise TimedOut(f"tool {self.tool.name} had no free place in time", tool=self.tool.name)
                ticket.thread.waits_for = f"tool {self.tool.name}"
                await PARK
        except BaseException:
            if ticket.given:
                self.leave()
            else:
                self.queue.remove(ticket)
            raise

    def leave(self) -> None:
        """Give a place back, and to whoever is next."""
        self.running -= 1
        while self.queue and self.running < self.tool.mark.concurrency:
            ticket = self.queue.popleft()
            ticket.given = True
            self.running += 1
            ticket.thread.wake()
