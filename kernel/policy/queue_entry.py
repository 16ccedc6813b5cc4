"""A policy's record of one job, and a heap of waiting jobs.

The heap drops stale entries when they reach the top. To add, to remove or to find the first entry takes time in the
logarithm of its length, and no decision sorts it. Policies use the record and the heap; neither reads a clock.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from kernel.policy.policy import Job

PAYBACK = 4  # a job keeps its slot for this many times its switch cost, so switches take at most a fifth of the time
SLACK = 64  # stale entries that any heap may hold, however short

Key = tuple[float, ...]

_serials = itertools.count(1)


class QueueEntry:
    """The record of `job` that its policy holds while the job waits or runs.

    `since`: when the job began to wait or to run. `last`: when it last made a token or got its slot. `key`: its place
    in the order, the smallest first. `limit`: the job's limit on arrival. `serial`: the number of its valid item in a
    heap (0: it is in no heap).

    Tokens that the job made: `total_tokens` in all, `slot_tokens` since it got its slot, and `grant_used` of its
    `grant` (a grant of 0 is unbounded).

    `level`: the level, priority or length class of the job, as its policy defines. For multi-level policies:
    `initial_service` is the service with which the job starts, in tokens (below 0: not computed yet), `waits_from` the
    virtual time at which its wait began, and `starvation_serial` the number of its valid item in the starvation heap
    (0: none). For aging: `start_urgency` is the urgency at which the job got its slot, and `overtook` says whether a
    job of higher priority was waiting at that time.
    """

    __slots__ = (
        "grant",
        "grant_used",
        "initial_service",
        "job",
        "key",
        "last",
        "level",
        "limit",
        "overtook",
        "serial",
        "since",
        "slot_tokens",
        "start_urgency",
        "starvation_serial",
        "total_tokens",
        "waits_from",
    )

    def __init__(self, job: Job, since: float) -> None:
        self.job = job
        self.since = self.last = since
        self.key: Key = ()
        self.level = 0
        self.limit = job.limit
        self.initial_service = -1.0
        self.waits_from = self.start_urgency = 0.0
        self.overtook = False
        self.slot_tokens = self.total_tokens = self.grant = self.grant_used = 0
        self.serial = self.starvation_serial = 0

    @property
    def switch_paid(self) -> bool:
        """Whether the job has run for long enough on its slot to make up for the cost of its preemption."""
        return self.slot_tokens >= PAYBACK * self.job.switch_cost


class LazyHeap:
    """Queue entries in the order of their keys. An entry is in at most one heap at a time."""

    __slots__ = ("_heap", "_length")

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, QueueEntry]] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, entry: QueueEntry, key: Key) -> None:
        """Add `entry`, which must be in no heap, at the place of `key`."""
        entry.serial = next(_serials)
        heapq.heappush(self._heap, (key, entry.serial, entry))
        self._length += 1

    def remove(self, entry: QueueEntry) -> None:
        """Remove `entry`, which must be in this heap, from any place."""
        entry.serial = 0
        self._length -= 1
        if not self._length:
            self._heap.clear()  # the stale items would hold their jobs
        elif len(self._heap) > 2 * self._length + SLACK:
            self._heap = [item for item in self._heap if item[1] == item[2].serial]
            heapq.heapify(self._heap)

    def first(self) -> QueueEntry | None:
        heap = self._heap
        while heap:
            _, serial, entry = heap[0]
            if entry.serial == serial:
                return entry
            heapq.heappop(heap)
        return None

    def best(self, fits: Callable[[QueueEntry], bool]) -> QueueEntry | None:
        """The first entry that `fits`; the entries before it stay in the heap."""
        passed: list[tuple[Key, int, QueueEntry]] = []
        heap = self._heap
        found = None
        while (entry := self.first()) is not None:
            if fits(entry):
                found = entry
                break
            passed.append(heapq.heappop(heap))
        for item in passed:
            heapq.heappush(heap, item)
        return found

    def in_order(self) -> list[tuple[Key, int, QueueEntry]]:
        """All items in order. Sorts the heap, so only listings should call it."""
        return sorted(item for item in self._heap if item[1] == item[2].serial)
