"""Gives out pids: they count up, also across runs of the daemon, and no two processes ever have the same one.

The process table owns it; all that start processes take their pids from it. With a journal, later runs begin above a
number that is on disk: pids are reserved in blocks, so a start of a process seldom causes a write. It never writes
itself: it calls `on_low`, and is notified with `confirm`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from ipc.errors import ShuttingDown

# Pids in a block. Blocks grow with the number that this run has used, so that a run which is killed skips about as many
# pids as it used, and few if it used few.
LEAST_BLOCK, MOST_BLOCK = 100, 100_000
MARGIN = 20  # pids for connections, which do not wait until more pids are reserved


class PidAllocator:
    """`last` is the last pid that was given out.

    The `on_low` hooks are called with a pid: they request that all pids up to it are reserved on disk, before all later
    requests. Without a journal nothing is reserved, and nobody waits.
    """

    def __init__(self) -> None:
        self.last = 0
        self.on_low: list[Callable[[int], None]] = []
        self._first = 0  # the last pid of the previous run
        self._low = self._requested = self._confirmed = inf
        self._waiting = 0  # pids that all calls of `wait` in progress need
        self._changed = asyncio.Event()

    def take(self) -> int:
        """A new pid. Raises `ShuttingDown` after `close`."""
        if self.last >= self._low:
            self._request(0)
        self.last = pid = self.last + 1
        return pid

    @property
    def ready(self) -> bool:
        """Whether the next process may start: its pid is reserved on disk."""
        return self.last + MARGIN < self._confirmed

    def is_earlier(self, pid: int) -> bool:
        """Whether an earlier run gave out `pid`, which in this run only a durable process can have again."""
        return pid <= self._first

    def cover(self, count: int) -> None:
        """Request that `count` more pids are reserved, for processes that start after a later request to the disk."""
        if self.last + MARGIN + count > self._requested:
            self._request(count)

    async def wait(self, count: int = 1) -> None:
        """Return when `count` more pids are reserved on disk, or immediately while the disk refuses writes."""
        self._waiting += count
        try:
            while self.last + MARGIN + count > self._confirmed:
                self.cover(self._waiting)
                await self._changed.wait()
        finally:
            self._waiting -= count

    def start_after(self, last: int, reserved: int) -> None:
        """Begin a run: the previous run has used the pids up to `last`, and `reserved` is on disk for this one."""
        self.last = self._first = max(self.last, last)
        self._confirmed = reserved
        self._set_requested(reserved)

    def confirm(self, pid: int, *, refused: bool = False) -> None:
        """All pids up to `pid` are reserved on disk.

        `refused`: the disk refuses writes. Until it accepts them again, running agents go on without reserved pids.
        """
        self._confirmed = inf if refused else pid
        self._changed.set()
        self._changed.clear()

    def close(self) -> int:
        """Give out no more pids; return the last one."""
        self._low = -1
        return self.last

    def _request(self, count: int) -> None:
        if self._low < 0:
            raise ShuttingDown("the daemon is shutting down and starts no more processes", retry_after=5.0)
        block = min(max(LEAST_BLOCK, self.last - self._first), MOST_BLOCK)
        pid = self.last + MARGIN + count + block
        self._set_requested(pid)
        for hook in self.on_low:
            hook(pid)

    def _set_requested(self, pid: int) -> None:
        self._requested = pid
        self._low = self.last + (pid - self.last) // 2
