"""Where one job stands with its policy, and a line of those that wait.

The line is a heap that drops dead entries as they come up: joining, leaving and being first cost a logarithm of its
length, and nothing is ever sorted. Used by the policies; both know nothing of time but what they are handed.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from kernel.policy.policy import Job

PATIENCE = 4  # a job keeps its slot for so many times what its preemption costs: a fifth of the time at most is lost
SLACK = 64  # dead entries that a line may always have

Key = tuple[float, ...]

_serials = itertools.count(1)


class QueueEntry:
    """`since`: the time from which it waits or runs; `last`: when it last made a token, or got its slot.

    `made` counts its tokens since it got its slot, `served` all. `used` of the `grant`, which is 0 if it has no bound.
    `limit` is that of its job when it came. `key` orders it among others, the lesser one first. `serial` says which
    entry of a heap is the valid one, 0 for none. Of the policies that have levels are `level`, `joined` (tokens above
    its level), `starves` (its entry among those that will), and `boost`: how urgent it had become when it got its slot,
    or when its wait began in virtual time; of aging is `overtook`, someone of higher priority.
    """

    __slots__ = (
        "boost",
        "grant",
        "job",
        "joined",
        "key",
        "last",
        "level",
        "limit",
        "made",
        "overtook",
        "serial",
        "served",
        "since",
        "starves",
        "used",
    )

    def __init__(self, job: Job, since: float) -> None:
        self.job = job
        self.since = self.last = since
        self.key: Key = ()
        self.level = 0
        self.limit = job.limit
        self.joined = -1.0
        self.boost = 0.0
        self.overtook = False
        self.made = self.served = self.grant = self.used = 0
        self.serial = self.starves = 0

    @property
    def paid_back(self) -> bool:
        """Whether it has made up for what its preemption will cost."""
        return self.made >= PATIENCE * self.job.switch_cost


class LazyHeap:
    """Standings in the order of their keys, each in one line at a time."""

    __slots__ = ("_heap", "_length")

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, QueueEntry]] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, entry: QueueEntry, key: Key) -> None:
        """Put it in its place, which is `key`; it is in no line now."""
        entry.serial = next(_serials)
        heapq.heappush(self._heap, (key, entry.serial, entry))
        self._length += 1

    def remove(self, entry: QueueEntry) -> None:
        """Take it out, wherever it is."""
        entry.serial = 0
        self._length -= 1
        if len(self._heap) > 2 * self._length + SLACK:
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
        """The first that `fits`; those before it stay where they are."""
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

    def listed(self) -> list[tuple[Key, int, QueueEntry]]:
        """All, in order: for showing only, since it sorts."""
        return sorted(item for item in self._heap if item[1] == item[2].serial)
