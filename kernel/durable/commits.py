"""Commits: hands changes to the journal, and lets threads wait until a commit is on disk.

Used by all of `kernel.durable`. Commits are numbered in the order of the requests, and reach the disk in this order.
It never reports an error of the disk: the journal tries again, and the threads wait until the write succeeds. A commit
that the journal cannot store at all raises `NotStorable` in those who wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush
from typing import Any

from ipc.errors import LlmosError, NotStorable
from ipc.syscalls import WaitFacts
from kernel.core.fiber import PARK
from kernel.core.process import Thread
from kernel.journal.changes import Change, HighestIds
from kernel.journal.journal import Journal
from kernel.lib.wording import counted, verb

MOST_ERRORS = 1000  # the last errors of commits, which threads may be about to get


class Commits:
    """`requested` and `committed`: the numbers of the last commit that was requested, and of the last one on disk.

    `when_not_storable` is called with the changes of a commit that the journal cannot store.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.requested = self.committed = 0
        self.refused = ""  # why the disk refused the last attempt to write; empty after a success
        self.when_not_storable: Callable[[Sequence[Change], NotStorable], None] = _ignore
        self._not_storable: dict[int, NotStorable] = {}  # by number of the commit; the last `MOST_ERRORS` of them
        self._waiting: list[tuple[int, int, Thread]] = []
        self._count = 0
        self._last_pid = 0  # the highest pid that was reserved

    def persist(self, *changes: Change) -> int:
        """Ask the journal to write `changes`; return the number of the commit.

        All changes that are requested in one turn of the loop are written in one transaction.
        """
        self.requested += 1
        self._journal.persist(changes, partial(self._written, self.requested, changes))
        return self.requested

    def reserve_pid(self, pid: int) -> None:
        """Keep later runs from giving `pid` to another process, because a durable process may address it again.

        Most pids are reserved in blocks already, but not while the disk refuses writes. Then this request reaches the
        disk together with the record that contains the pid.
        """
        if pid > self._last_pid:
            self._last_pid = pid
            self.persist(HighestIds(pid=pid))

    async def wait(self, thread: Thread, number: int) -> None:
        """Return when commit `number` is on disk. Raises `NotStorable`."""
        while self.committed < number:
            self._count += 1
            heappush(self._waiting, (number, self._count, thread))
            thread.waits_for = CommitWait(self, number)
            await PARK
        if number in self._not_storable:
            error = self._not_storable[number]
            raise NotStorable(error.message, **error.data)  # a copy: several agents may get it

    async def wait_deferring_cancellation(self, thread: Thread, number: int) -> None:
        """Return when commit `number`, with the record of a call, is on disk. Defer a cancellation to the next wait.

        The call has taken effect. If the wait were cancelled, the agent would never get the result, such as a message
        that the call has taken from the mailbox.
        """
        deferred: asyncio.CancelledError | None = None
        while self.committed < number:
            try:
                await self.wait(thread, number)
            except asyncio.CancelledError as error:
                if thread.process.dying:
                    raise
                deferred = error
        if deferred is not None:
            thread.defer(deferred)

    def _written(self, number: int, changes: Sequence[Change], error: LlmosError | None) -> None:
        if isinstance(error, NotStorable):
            self._not_storable[number] = error
            if len(self._not_storable) > MOST_ERRORS:
                del self._not_storable[next(iter(self._not_storable))]
            self._written(number, changes, None)
            self.when_not_storable(changes, error)
            return
        self.refused = "" if error is None else str(error.data.get("cause", error.message))
        if error is not None:
            return  # the journal tries again
        self.committed = max(self.committed, number)
        while self._waiting and self._waiting[0][0] <= self.committed:
            heappop(self._waiting)[2].wake()


def _ignore(changes: Sequence[Change], error: NotStorable) -> None:
    """The default of `Commits.when_not_storable`."""


class CommitWait:
    """The wait of a thread until commit `number` is on disk."""

    __slots__ = ("_commits", "_number")
    stage = ""

    def __init__(self, commits: Commits, number: int) -> None:
        self._commits = commits
        self._number = number

    def __str__(self) -> str:
        return "journal"

    def ended_by(self) -> None:
        """None: the journal ends the wait."""

    def explain(self, thread: Thread) -> WaitFacts:
        commits = self._commits
        ahead = max(self._number - commits.committed, 0)
        state = f"{counted(ahead, 'commit')} up to its own {verb(ahead, 'is', 'are')} not on disk yet"
        refused = (
            f"the disk refuses to write {verb(ahead, 'it', 'them')} ({commits.refused}), and the journal tries again"
        )
        return WaitFacts(
            kind="journal",
            doing="waiting for the journal to write what it did",
            state=f"{state}; {refused}" if commits.refused else state,
            ends="the disk has written its commit",
        )


class CommitReceipt:
    """Lets a caller that is not durable wait until its change is on disk."""

    __slots__ = ("_commits", "_number")

    def __init__(self, commits: Commits, number: int) -> None:
        self._commits = commits
        self._number = number

    async def answer_after_commit(self, answer: Any) -> Any:
        """Return `answer` when the change is on disk."""
        thread = asyncio.current_task()
        assert isinstance(thread, Thread)
        await self._commits.wait(thread, self._number)
        return answer
