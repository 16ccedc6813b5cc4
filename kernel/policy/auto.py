"""The policy that picks a policy: it looks at the load, and lets the kind decide that fits it.

As long as nobody has to wait, all kinds do the same, and it changes nothing. Where calls wait, what their owners said
counts first: priorities (`priority`), then deadlines (`edf`); else, if several owners compete, their shares (`fair`);
else the mean time that one owner's programs take (`attained`). The quantum follows the line and the measured pace: a
round of all that wait is to last a bounded time, but no slot is to change hands for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from kernel.policy.policy import Decision, Job, Policy, hand_over

DWELL = 2.0  # seconds for which the load must ask for another kind or quantum
HOLD = 10.0  # seconds for which a choice stays in any case
ROUND = 20.0  # seconds that a round of quanta of all that wait should take at most
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the quantum that was set
SMOOTHING = 0.95  # weight of the past in the pace


class _Seen:
    """What is known of one job: what it was counted as, and when it last made a token."""

    __slots__ = ("deadline", "last", "owner", "priority")

    def __init__(self, job: Job, now: float) -> None:
        self.owner = job.group.owner
        self.priority = job.priority
        self.deadline = job.group.deadline is not None
        self.last = now


class Auto:
    """`make` gives the policy of a kind with a quantum. `reason` says why it decides as it does since when it does.

    `chosen` is the kind that decides. It is another one only after the load has asked for that for `DWELL` seconds and
    the present one has had `HOLD`; whether there is any contention has a hysteresis of its own.
    """

    kind = "auto"

    def __init__(self, make: Callable[[str, int], Policy], quantum: int) -> None:
        self._make = make
        self._base = quantum
        self.chosen = "priority"
        self.quantum = quantum
        self.reason = "priority: nobody has had to wait yet"
        self._inner = make(self.chosen, quantum)
        self._jobs: dict[int, _Seen] = {}
        self._owners: Counter[str] = Counter()
        self._priorities: Counter[int] = Counter()
        self._deadlines = 0
        self._pace = 0.0
        self._contended = False
        self._wanted: tuple[str, int] = (self.chosen, quantum)
        self._wanted_since = 0.0
        self._chosen_since: float | None = None

    @property
    def waiting(self) -> int:
        return self._inner.waiting

    def arrive(self, job: Job, now: float) -> None:
        self._count(job, now)
        self._inner.arrive(job, now)

    def adopt(self, job: Job, now: float) -> None:
        self._count(job, now)
        self._inner.adopt(job, now)

    def charge_prompt(self, job: Job, tokens: int, now: float) -> None:
        self._inner.charge_prompt(job, tokens, now)

    def charge_tokens(self, job: Job, tokens: int, now: float) -> None:
        seen = self._jobs.get(job.id)
        if seen is not None and tokens > 0:
            pace = (now - seen.last) / tokens
            self._pace = SMOOTHING * self._pace + (1 - SMOOTHING) * pace if self._pace else pace
            seen.last = now
        self._inner.charge_tokens(job, tokens, now)

    def reprioritise(self, job: Job, now: float) -> None:
        if job.id in self._jobs:
            last = self._forget(job)
            self._count(job, last)
        self._inner.reprioritise(job, now)

    def leave(self, job: Job, now: float) -> None:
        if job.id in self._jobs:
            self._forget(job)
        self._inner.leave(job, now)

    def decide(self, slots: int, now: float) -> Decision:
        self._look(slots, now)
        decision = self._inner.decide(slots, now)
        for grant in decision.run:
            self._jobs[grant.job.id].last = now
        for job in decision.shed:
            self._forget(job)
        return decision

    def line(self) -> list[Job]:
        return self._inner.line()

    def running(self) -> list[Job]:
        return self._inner.running()

    def since(self, job: Job) -> float:
        return self._inner.since(job)

    # ---- choosing

    def _look(self, slots: int, now: float) -> None:
        if self._chosen_since is None:
            self._chosen_since = self._wanted_since = now
        waiting = self._inner.waiting
        self._contended = waiting > 0 if self._contended else 2 * waiting > slots
        if not self._contended:
            self._wanted, self._wanted_since = (self.chosen, self.quantum), now
            return
        kind, why = self._fitting()
        quantum = self._fitting_quantum(slots, waiting)
        if (kind, quantum) != self._wanted:
            self._wanted, self._wanted_since = (kind, quantum), now
        if (kind, quantum) == (self.chosen, self.quantum):
            return
        if now - self._wanted_since >= DWELL and now - self._chosen_since >= HOLD:
            self._switch(kind, quantum, f"{why}; {waiting} wait for {slots} slots", now)

    def _fitting(self) -> tuple[str, str]:
        """The kind that fits the load, and why."""
        if len(self._priorities) > 1:
            return "priority", f"{len(self._priorities)} priorities are in use"
        if 2 * self._deadlines >= len(self._jobs):
            return "edf", f"{self._deadlines} of {len(self._jobs)} calls have a deadline"
        if len(self._owners) > 1:
            return "fair", f"{len(self._owners)} owners compete"
        return "attained", "all calls are of one owner, without priorities or deadlines"

    def _fitting_quantum(self, slots: int, waiting: int) -> int:
        """The largest quantum with which a round takes at most `ROUND`, and no step of the scale for a trifle."""
        if not self._pace:
            return self.quantum
        fitting = ROUND * slots / (waiting * self._pace)
        if self.quantum / 2 <= fitting < 4 * self.quantum:
            return self.quantum
        scale = max((one for one in SCALES if one * self._base <= fitting), default=SCALES[0])
        return max(round(scale * self._base), 1)

    def _switch(self, kind: str, quantum: int, why: str, now: float) -> None:
        before = f"{self.chosen} with a quantum of {self.quantum}"
        inner = self._make(kind, quantum)
        hand_over(self._inner, inner, now)
        self._inner, self.chosen, self.quantum, self._chosen_since = inner, kind, quantum, now
        pace = f", {self._pace:.3g} s a token" if self._pace else ""
        self.reason = f"{kind} with a quantum of {quantum}, after {before}: {why}{pace}"

    # ---- counting

    def _count(self, job: Job, now: float) -> None:
        if job.id not in self._jobs:
            seen = self._jobs[job.id] = _Seen(job, now)
            self._owners[seen.owner] += 1
            self._priorities[seen.priority] += 1
            self._deadlines += seen.deadline

    def _forget(self, job: Job) -> float:
        """It counts no more. When it last made a token."""
        seen = self._jobs.pop(job.id)
        self._deadlines -= seen.deadline
        self._owners[seen.owner] -= 1
        if not self._owners[seen.owner]:
            del self._owners[seen.owner]
        self._priorities[seen.priority] -= 1
        if not self._priorities[seen.priority]:
            del self._priorities[seen.priority]
        return seen.last
