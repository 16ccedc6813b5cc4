"""Highest response ratio next: the job that has waited longest in proportion to its length runs first, to its end.

Brinch Hansen, "An Analysis of Response Ratio Scheduling", IFIP 1971. The ratio is (waiting + service) / service. So
short calls go before long ones, and every wait ends, since the ratio of a waiting call grows without bound. The length
of a call is estimated and rounded up to a power of the square root of two. Calls with the same rounded length form a
class, in which the ratios are in order of arrival, so a decision compares only the first call of each class.
"""

from __future__ import annotations

import math

from kernel.policy.base import OrderedPolicy
from kernel.policy.group import PROMPT_WEIGHT
from kernel.policy.policy import Job
from kernel.policy.queue_entry import Key, LazyHeap, QueueEntry

INITIAL_LENGTH = 128.0  # tokens that a call without a limit is assumed to make, until some have run
SMOOTHING = 0.9  # weight of the past in the usual length of a call


class HighestResponseRatio(OrderedPolicy):
    """Estimates service in tokens, and converts waiting times by the observed seconds per token."""

    kind = "hrrn"

    def __init__(self) -> None:
        super().__init__()
        self._classes: dict[int, LazyHeap] = {}  # the waiting jobs by length class; no heap in it is empty
        self._usual_length = INITIAL_LENGTH
        self._now = 0.0  # of the last decision

    def _key(self, entry: QueueEntry, now: float) -> Key:
        job = entry.job
        need = PROMPT_WEIGHT * job.prompt + (job.limit or self._usual_length)
        entry.level = math.ceil(2 * math.log2(max(need, 1)))
        return (entry.since, job.id)

    def _rule(self, entry: QueueEntry, now: float) -> str:
        length = round(2 ** (entry.level / 2))
        return (
            "runs the call first that has waited longest in proportion to its length, about "
            f"{length} tokens for this one, and takes no slot away"
        )

    def _add_waiting(self, entry: QueueEntry, now: float) -> None:
        entry.key = self._key(entry, now)
        self._waiting[entry.job.id] = entry
        self._classes.setdefault(entry.level, LazyHeap()).push(entry, entry.key)

    def _remove_waiting(self, entry: QueueEntry) -> None:
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
        """Highest ratio first, then order of arrival. While the speed is unknown, it assumes one second per token."""
        waited = (now - entry.since) / (self._token_seconds or 1.0)
        return (-waited / 2 ** (entry.level / 2), entry.level, entry.job.id)

    def leave(self, job: Job, now: float) -> None:
        entry = self._running.get(job.id)
        if entry is not None and entry.total_tokens:
            self._usual_length = SMOOTHING * self._usual_length + (1 - SMOOTHING) * entry.total_tokens
        super().leave(job, now)

    def queue(self) -> list[Job]:
        order = sorted(self._waiting.values(), key=lambda entry: self._order(entry, self._now))
        return [entry.job for entry in order]
