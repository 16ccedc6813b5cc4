"""Highest response ratio next: who has waited longest for what it needs goes first, and nobody is preempted.

Brinch Hansen, "An Analysis of Response Ratio Scheduling", IFIP 1971. The ratio is (waiting + service) / service: short
calls go before long ones, and every wait ends, since a ratio grows without bound. What a call needs is estimated, and
rounded up to a power of the square root of two; within such a class the ratio goes by the order of coming, so that a
decision compares the first of each class and no others.
"""

from __future__ import annotations

import math

from kernel.policy.base import Ordered
from kernel.policy.group import PROMPT_WEIGHT
from kernel.policy.policy import Job
from kernel.policy.queue_entry import Key, Line, Standing

UNKNOWN = 128.0  # tokens that a call without a limit is taken to make, until some have run
SMOOTHING = 0.9  # weight of the past in that


class HighestResponseRatio(Ordered):
    """Service in tokens, by the observed pace in seconds."""

    kind = "hrrn"

    def __init__(self) -> None:
        super().__init__()
        self._classes: dict[int, Line] = {}  # those that wait, by the class of what they need; none is empty
        self._typical = UNKNOWN
        self._now = 0.0  # of the last decision

    def _key(self, standing: Standing, now: float) -> Key:
        job = standing.job
        need = PROMPT_WEIGHT * job.prompt + (job.limit or self._typical)
        standing.level = math.ceil(2 * math.log2(max(need, 1)))
        return (standing.since, job.id)

    def _wait(self, standing: Standing, now: float) -> None:
        standing.key = self._key(standing, now)
        self._waiting[standing.job.id] = standing
        self._classes.setdefault(standing.level, Line()).push(standing, standing.key)

    def _unwait(self, standing: Standing) -> None:
        del self._waiting[standing.job.id]
        line = self._classes[standing.level]
        line.remove(standing)
        if not len(line):
            del self._classes[standing.level]

    def _first(self, now: float) -> Standing | None:
        self._now = now
        firsts = [first for line in self._classes.values() if (first := line.first()) is not None]
        return min(firsts, key=lambda standing: self._order(standing, now), default=None)

    def _order(self, standing: Standing, now: float) -> Key:
        """Highest ratio first; of equals, the first to come. As long as no pace is known the unit is a second."""
        waited = (now - standing.since) / (self._pace or 1.0)
        return (-waited / 2 ** (standing.level / 2), standing.level, standing.job.id)

    def leave(self, job: Job, now: float) -> None:
        standing = self._running.get(job.id)
        if standing is not None and standing.served:
            self._typical = SMOOTHING * self._typical + (1 - SMOOTHING) * standing.served
        super().leave(job, now)

    def line(self) -> list[Job]:
        order = sorted(self._waiting.values(), key=lambda standing: self._order(standing, self._now))
        return [standing.job for standing in order]
