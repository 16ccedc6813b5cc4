"""The policy that chooses a policy: it observes the load and delegates its decisions to the kind that fits.

While no call waits, all kinds decide alike, and the choice stays. When calls wait, explicit wishes count first: the
choice is `priority` if priorities differ, and `edf` if at least half of the calls have deadlines. Otherwise it is
`fair`, which gives several owners their shares, or, for a single owner, `attained`, which aims at a short mean
completion time. The quantum follows the number of waiting calls and the measured speed, so that one round of all
waiting calls takes a bounded time without needless switches. It orders no jobs itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from kernel.policy.policy import Decision, Job, Outlook, Policy, hand_over

DWELL = 2.0  # seconds for which the load must favour another kind or quantum before a change
HOLD = 10.0  # seconds for which a choice stays in any case
ROUND = 20.0  # the most seconds that a round, one quantum for each waiting call, should take
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # factors of the configured quantum
SMOOTHING = 0.95  # weight of the past in the measured seconds per token


class _JobRecord:
    """The owner, priority and deadline with which a job was counted, and when it last made a token or got its slot."""

    __slots__ = ("deadline", "last", "owner", "priority")

    def __init__(self, job: Job, now: float) -> None:
        self.owner = job.group.owner
        self.priority = job.priority
        self.deadline = job.group.deadline is not None
        self.last = now


class Auto:
    """`make` creates a policy from its kind and a quantum. `reason` explains the last change.

    `chosen` is the kind of policy that decides now. It changes only after the load has favoured another kind or quantum
    for `DWELL` seconds, and `HOLD` seconds after the last change at the earliest. The load counts only under
    contention, which begins when more calls wait than half of the slots and ends when no call waits.
    """

    kind = "auto"

    def __init__(self, make: Callable[[str, int], Policy], quantum: int) -> None:
        self._make = make
        self._configured_quantum = quantum
        self.chosen = "priority"
        self.quantum = quantum
        self.reason = "priority: no call has had to wait yet"
        self._policy = make(self.chosen, quantum)
        self._jobs: dict[int, _JobRecord] = {}
        self._owners: Counter[str] = Counter()
        self._priorities: Counter[int] = Counter()
        self._deadlines = 0
        self._token_seconds = 0.0
        self._contended = False
        self._wanted: tuple[str, int] = (self.chosen, quantum)
        self._wanted_since = 0.0
        self._chosen_since: float | None = None

    @property
    def waiting(self) -> int:
        return self._policy.waiting

    def arrive(self, job: Job, now: float) -> None:
        self._count(job, now)
        self._policy.arrive(job, now)

    def adopt(self, job: Job, now: float) -> None:
        self._count(job, now)
        self._policy.adopt(job, now)

    def charge_prompt(self, job: Job, tokens: int, now: float) -> None:
        self._policy.charge_prompt(job, tokens, now)

    def charge_tokens(self, job: Job, tokens: int, now: float) -> None:
        record = self._jobs.get(job.id)
        if record is not None and tokens > 0:
            seconds = (now - record.last) / tokens
            before = self._token_seconds
            self._token_seconds = SMOOTHING * before + (1 - SMOOTHING) * seconds if before else seconds
            record.last = now
        self._policy.charge_tokens(job, tokens, now)

    def reprioritise(self, job: Job, now: float) -> None:
        if job.id in self._jobs:
            last = self._forget(job)
            self._count(job, last)
        self._policy.reprioritise(job, now)

    def leave(self, job: Job, now: float) -> None:
        if job.id in self._jobs:
            self._forget(job)
        self._policy.leave(job, now)

    def decide(self, slots: int, now: float) -> Decision:
        self._reconsider(slots, now)
        decision = self._policy.decide(slots, now)
        for grant in decision.run:
            self._jobs[grant.job.id].last = now
        for job in decision.shed:
            self._forget(job)
        return decision

    def queue(self) -> list[Job]:
        return self._policy.queue()

    def running(self) -> list[Job]:
        return self._policy.running()

    def since(self, job: Job) -> float:
        return self._policy.since(job)

    def outlook(self, job: Job, now: float) -> Outlook:
        outlook = self._policy.outlook(job, now)
        return outlook._replace(rule=f"uses {self.chosen} at present, which {outlook.rule}")

    # ---- choosing

    def _reconsider(self, slots: int, now: float) -> None:
        """Switch to another kind or quantum if the load has favoured it for long enough."""
        if self._chosen_since is None:
            self._chosen_since = self._wanted_since = now
        waiting = self._policy.waiting
        self._contended = waiting > 0 if self._contended else 2 * waiting > slots
        if not self._contended:
            self._wanted, self._wanted_since = (self.chosen, self.quantum), now
            return
        kind, why = self._fitting_kind()
        quantum = self._fitting_quantum(slots, waiting)
        if (kind, quantum) != self._wanted:
            self._wanted, self._wanted_since = (kind, quantum), now
        if (kind, quantum) == (self.chosen, self.quantum):
            return
        if now - self._wanted_since >= DWELL and now - self._chosen_since >= HOLD:
            self._switch(kind, quantum, f"{why}; {waiting} wait for {slots} slots", now)

    def _fitting_kind(self) -> tuple[str, str]:
        """The kind that fits the load, and why."""
        if len(self._priorities) > 1:
            return "priority", f"{len(self._priorities)} priorities are in use"
        if 2 * self._deadlines >= len(self._jobs):
            return "edf", f"{self._deadlines} of {len(self._jobs)} calls have a deadline"
        if len(self._owners) > 1:
            return "fair", f"{len(self._owners)} owners compete"
        return "attained", "all calls are of one owner, without priorities or deadlines"

    def _fitting_quantum(self, slots: int, waiting: int) -> int:
        """The largest quantum with which a round takes at most `ROUND`. The present one if it is not far from that."""
        if not self._token_seconds:
            return self.quantum
        fitting = ROUND * slots / (waiting * self._token_seconds)
        if self.quantum / 2 <= fitting < 4 * self.quantum:
            return self.quantum
        scale = max((one for one in SCALES if one * self._configured_quantum <= fitting), default=SCALES[0])
        return max(round(scale * self._configured_quantum), 1)

    def _switch(self, kind: str, quantum: int, why: str, now: float) -> None:
        before = f"{self.chosen} with a quantum of {self.quantum}"
        policy = self._make(kind, quantum)
        hand_over(self._policy, policy, now)
        self._policy, self.chosen, self.quantum, self._chosen_since = policy, kind, quantum, now
        speed = f", {self._token_seconds:.3g} s a token" if self._token_seconds else ""
        self.reason = f"{kind} with a quantum of {quantum}, after {before}: {why}{speed}"

    # ---- counting

    def _count(self, job: Job, now: float) -> None:
        if job.id not in self._jobs:
            record = self._jobs[job.id] = _JobRecord(job, now)
            self._owners[record.owner] += 1
            self._priorities[record.priority] += 1
            self._deadlines += record.deadline

    def _forget(self, job: Job) -> float:
        """Stop counting `job`. Returns when it last made a token or got its slot."""
        record = self._jobs.pop(job.id)
        self._deadlines -= record.deadline
        self._owners[record.owner] -= 1
        if not self._owners[record.owner]:
            del self._owners[record.owner]
        self._priorities[record.priority] -= 1
        if not self._priorities[record.priority]:
            del self._priorities[record.priority]
        return record.last
