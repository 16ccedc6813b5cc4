"""Commits: hands changes to the journal, and holds threads back until a commit is on the disk.

Used by all of `kernel.durable`. Commits are numbered in the order of asking, which is that of the disk. While the disk
takes nothing, nobody is told an error: who waits goes on waiting, and the journal tries again.
"""

from __future__ import annotations

import asyncio
from functools import partial
from heapq import heappop, heappush
from typing import Any

from ipc.errors import LlmosError
from kernel.core.fiber import PARK
from kernel.core.process import Thread
from kernel.journal.changes import Change, HighestIds
from kernel.journal.journal import Journal


class Commits:
    """`done`: the last commit that is on the disk."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.asked = self.done = 0
        self._waiting: list[tuple[int, int, Thread]] = []
        self._count = 0
        self._last_pid = 0  # the highest that was kept from later lives

    def keep(self, *changes: Change) -> int:
        """Have `changes` written; the number of the commit. What is asked for in one turn is one transaction."""
        self.asked += 1
        self._journal.persist(changes, partial(self._written, self.asked))
        return self.asked

    def remember(self, pid: int) -> None:
        """Give the pid of a process, which a durable one knows by now, to no other process in later lives."""
        if pid > self._last_pid:
            self._last_pid = pid
            self.keep(HighestIds(pid=pid))

    async def reach(self, thread: Thread, number: int) -> None:
        """Return when commit `number` is on the disk."""
        while self.done < number:
            self._count += 1
            heappush(self._waiting, (number, self._count, thread))
            thread.waits_for = "journal"
            await PARK

    async def hand_over(self, thread: Thread, number: int) -> None:
        """The same, for a call that is done: a cancellation that comes meanwhile is thrown at the next wait instead.

        What was done, such as the taking of a message, would be lost otherwise.
        """
        late: asyncio.CancelledError | None = None
        while self.done < number:
            try:
                await self.reach(thread, number)
            except asyncio.CancelledError as error:
                if thread.process.dying:
                    raise
                late = error
        if late is not None:
            thread.defer(late)

    def _written(self, number: int, error: LlmosError | None) -> None:
        if error is not None:
            return  # it is tried again
        self.done = max(self.done, number)
        while self._waiting and self._waiting[0][0] <= self.done:
            heappop(self._waiting)[2].wake()


class CommitReceipt:
    """What somebody who is not durable waits for: that what he did is on the disk."""

    __slots__ = ("_commits", "_number")

    def __init__(self, commits: Commits, number: int) -> None:
        self._commits = commits
        self._number = number

    async def before(self, answer: Any) -> Any:
        """`answer`, once it is."""
        thread = asyncio.current_task()
        assert isinstance(thread, Thread)
        await self._commits.reach(thread, self._number)
        return answer
