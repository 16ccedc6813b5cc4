"""Earliest deadline first, with load shedding: a waiting call that cannot meet its deadline ends with an error.

Liu and Layland, "Scheduling Algorithms for Multiprogramming in a Hard-Real-Time Environment", JACM 20(1), 1973, section
7: on one processor this order meets all deadlines if any order does. Under overload it would miss all deadlines by a
little (Locke, "Best-Effort Decision Making", 1986), so a call that is too late ends while it waits and never takes a
slot. Calls without a deadline run after all calls with one, and may starve.
"""

from __future__ import annotations

import math

from kernel.policy.policy import Job
from kernel.policy.preemptive import PreemptivePolicy
from kernel.policy.queue_entry import Key, QueueEntry

SMOOTHING = 0.9  # weight of the past in the share of their limits that calls use
FADING = 0.998  # weight of the past in the fastest speed, at each report of a slower one


class EarliestDeadline(PreemptivePolicy):
    """The earliest deadline first; a call that cannot meet its deadline is shed.

    The estimate of the time that a call still needs errs on the low side, since it is worse to shed a call that could
    finish in time than to try one that cannot. The estimate assumes that the call makes as large a share of its limit
    as recent calls did, at the fastest recent speed: steps are shorter when fewer sequences share them. The prompt is
    not counted, because a step reads many prompt tokens.

    A call that was preempted is not shed, so that the tokens which it has made are not wasted. Until a speed is known,
    only calls whose deadlines have passed are shed.
    """

    kind = "edf"

    def __init__(self) -> None:
        super().__init__()
        self._fastest = 0.0  # seconds per token; 0 until the first observation
        self._share = 0.0  # of its limit that a call uses; starts at 0, so that calls are rather run than shed

    def _key(self, entry: QueueEntry, now: float) -> Key:
        deadline = entry.job.group.deadline
        return (math.inf if deadline is None else deadline, entry.job.id)

    def _rule(self, entry: QueueEntry, now: float) -> str:
        deadline = entry.key[0]
        if deadline == math.inf:
            return "runs calls with a deadline first, and this one has none"
        return (
            f"runs the earliest deadline first, which is in {max(deadline - now, 0):.1f} s for this call, and ends a "
            "waiting call that cannot meet its deadline"
        )

    def _beats(self, first: QueueEntry, running: QueueEntry) -> bool:
        return first.key[0] < running.key[0]

    def _prepare(self, now: float) -> None:
        while (first := self._line.first()) is not None and self._hopeless(first, now):
            self._remove_waiting(first)
            self._shed.append(first.job)

    def _hopeless(self, entry: QueueEntry, now: float) -> bool:
        deadline = entry.key[0]
        if deadline == math.inf or entry.total_tokens:
            return False
        return now + max(self._share * entry.job.limit, 1) * self._fastest > deadline

    def charge_tokens(self, job: Job, tokens: int, now: float) -> None:
        entry = self._running.get(job.id)
        if entry is not None and tokens > 0:
            seconds = (now - entry.last) / tokens
            if self._fastest and seconds > self._fastest:
                seconds = FADING * self._fastest + (1 - FADING) * seconds
            self._fastest = seconds
        super().charge_tokens(job, tokens, now)

    def leave(self, job: Job, now: float) -> None:
        entry = self._running.get(job.id)
        if entry is not None and entry.total_tokens and entry.limit:
            share = min(entry.total_tokens / entry.limit, 1.0)
            self._share = SMOOTHING * self._share + (1 - SMOOTHING) * share
        super().leave(job, now)
