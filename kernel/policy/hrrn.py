"""Highest response ratio next: who has waited longest for what it needs goes first, and nobody is preempted.

Brinch Hansen, "An Analysis of Response Ratio Scheduling", IFIP 1971. The ratio is (waiting + service) / service: short
calls go before long ones, and every wait ends, since a ratio grows without bound. What a call needs is estimated, and
rounded up to a power of the square root of two; within such a class the ratio goes by the order of coming, so that a
decision compares the first of each class and no others.
"""

from __future__ import annotations

import math

from kernel.policy.base import OrderedPolicy
from kernel.policy.group import PROMPT_WEIGHT
from kernel.policy.policy import Job
from kernel.policy.queue_entry import Key, LazyHeap, QueueEntry

UNKNOWN = 128.0  # tokens that a call without a limit is taken to make, until some have run
SMOOTHING = 0.9  # weight of the past in that


class HighestResponseRatio(OrderedPolicy):
    """Service in tokens, by the observed pace in seconds."""

    kind = "hrrn"

    def __init__(self) -> None:
        super().__init__()
        self._classes: dict[int, LazyHeap] = {}  # those that wait, by the class of what they need; none is empty
        self._typical = UNKNOWN
        self._now = 0.0  # of the last decision

    def _key(self, entry: QueueEntry, now: float) -> Key:
        job = entry.job
        need = PROMPT_WEIGHT * job.prompt + (job.limit or self._typical)
        entry.level = math.ceil(2 * math.log2(max(need, 1)))
        return (entry.since, job.id)

    def _wait(self, entry: QueueEntry, now: float) -> None:
        entry.key = self._key(entry, now)
        self._waiting[entry.job.id] = entry
        self._classes.setdefault(entry.level, LazyHeap()).push(entry, entry.key)

    def _unwait(self, entry: QueueEntry) -> None:
        del self._waiting[entry.job.id]
        line = self._classes[entry.level]
        line.remove(entry)
        if not len(line):
            del self._classes[entry.level]

    def _first(self, now: float) -> QueueEntry | None:
        self._now = now
        firsts = [first for line in self._classes.values() if (first := line.first()) is not None]
        return min(firsts, key=lambda entry: self._order(entry, now), default=None)

    def _order(self, entry: QueueEntry, now: float) -> Key:
        """Highest ratio first; of equals, the first to come. As long as no pace is known the unit is a second."""
        waited = (now - entry.since) / (self._pace or 1.0)
        return (-waited / 2 ** (entry.level / 2), entry.level, entry.job.id)

    def leave(self, job: Job, now: float) -> None:
        entry = self._running.get(job.id)
        if entry is not None and entry.served:
            self._typical = SMOOTHING * self._typical + (1 - SMOOTHING) * entry.served
        super().leave(job, now)

    def line(self) -> list[Job]:
        order = sorted(self._waiting.values(), key=lambda entry: self._order(entry, self._now))
        return [entry.job for entry in order]
