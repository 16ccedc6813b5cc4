"""Earliest deadline first, with the hopeless shed: what must be done first runs, and what cannot be done in time ends.

Liu and Layland, "Scheduling Algorithms for Multiprogramming in a Hard-Real-Time Environment", JACM 20(1), 1973, section
7: on one processor it meets all deadlines that any order meets. Past its capacity it would miss all by a little
(Locke, "Best-Effort Decision Making", 1986): so a call that is too late is ended while it waits, and costs no slot. Who
has no deadline comes after all who have one, and may starve.
"""

from __future__ import annotations

import math

from kernel.policy.policy import Job
from kernel.policy.preemptive import PreemptivePolicy
from kernel.policy.queue_entry import Key, QueueEntry

SMOOTHING = 0.9  # weight of the past in the share of its limit that a call makes
FADING = 0.998  # weight of the past in the quickest pace, with each report of a slower one


class EarliestDeadline(PreemptivePolicy):
    """The earliest deadline first; a call that cannot meet its deadline is shed.

    What a call still needs is the share of its limit that calls made lately, at the quickest pace that any had of late:
    steps are shorter when fewer share them. Its prompt is not counted, because a step reads many tokens of a prompt. To
    shed a call that could be met is worse than to try in vain.

    A call that was preempted is not shed: what it made is paid for. As long as no pace is known, only those are shed
    whose deadlines have passed.
    """

    kind = "edf"

    def __init__(self) -> None:
        super().__init__()
        self._quickest = 0.0  # seconds a token; 0 as long as none was observed
        self._share = 0.0  # of their limits that calls make; 0 errs on the side of letting them run

    def _key(self, entry: QueueEntry, now: float) -> Key:
        deadline = entry.job.group.deadline
        return (math.inf if deadline is None else deadline, entry.job.id)

    def _beats(self, first: QueueEntry, running: QueueEntry) -> bool:
        return first.key[0] < running.key[0]

    def _prepare(self, now: float) -> None:
        while (first := self._line.first()) is not None and self._hopeless(first, now):
            self._unwait(first)
            self._shed.append(first.job)

    def _hopeless(self, entry: QueueEntry, now: float) -> bool:
        deadline = entry.key[0]
        if deadline == math.inf or entry.served:
            return False
        return now + max(self._share * entry.job.limit, 1) * self._quickest > deadline

    def charge_tokens(self, job: Job, tokens: int, now: float) -> None:
        entry = self._running.get(job.id)
        if entry is not None and tokens > 0:
            pace = (now - entry.last) / tokens
            if self._quickest and pace > self._quickest:
                pace = FADING * self._quickest + (1 - FADING) * pace
            self._quickest = pace
        super().charge_tokens(job, tokens, now)

    def leave(self, job: Job, now: float) -> None:
        entry = self._running.get(job.id)
        if entry is not None and entry.served and entry.limit:
            share = min(entry.served / entry.limit, 1.0)
            self._share = SMOOTHING * self._share + (1 - SMOOTHING) * share
        super().leave(job, now)
