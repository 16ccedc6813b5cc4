"""A desk for policies: jobs arrive, make a token a turn, and leave, and a policy must agree with the desk's own books.

Used by the tests of all policies. It checks every decision, and never makes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kernel.policy.group import PROMPT_WEIGHT, SchedulingGroup
from kernel.policy.policy import Decision, Policy, hand_over
from kernel.policy.registry import PolicySettings, make_policy


class Job:
    """A job of a test. `tokens`: how many it has still to make."""

    def __init__(
        self,
        number: int,
        tokens: int = 10,
        *,
        group: SchedulingGroup | None = None,
        owner: str = "",
        deadline: float | None = None,
        priority: int = 0,
        prompt: int = 0,
        critical_path: float = 0.0,
        switch_cost: float = 0.0,
        preemptible: bool = True,
        limited: bool = True,
    ) -> None:
        self.id = number
        self.tokens = tokens
        self.group = group or SchedulingGroup(number, owner, deadline=deadline)
        self.priority = priority
        self.prompt = prompt
        self.critical_path = critical_path
        self.switch_cost = switch_cost
        self.preemptible = preemptible
        self.limited = limited

    @property
    def limit(self) -> int:
        return self.tokens if self.limited else 0

    def __repr__(self) -> str:
        return f"Job({self.id})"


class Desk:
    """`slots` slots under `policy`. Every decision is checked against what the desk itself knows."""

    def __init__(self, policy: Policy | PolicySettings | str, slots: int = 1, **settings: object) -> None:
        if isinstance(policy, str):
            policy = PolicySettings(kind=policy, **settings)  # type: ignore[arg-type]
        self.policy = make_policy(policy) if isinstance(policy, PolicySettings) else policy
        self.slots = slots
        self.now = 0.0
        self.waiting: dict[int, Job] = {}
        self.running: dict[int, Job] = {}
        self.grants: dict[int, int | None] = {}  # tokens left to each running job, if there is a bound
        self.made: dict[int, int] = {}  # tokens, of all jobs so far
        self.done: list[int] = []
        self.shed: list[int] = []
        self.preemptions = 0
        self.history: list[tuple[float, str, tuple[int, ...]]] = []

    def come(self, *jobs: Job) -> Desk:
        for job in jobs:
            assert job.id not in self.made
            self.made[job.id] = 0
            self.waiting[job.id] = job
            self.policy.arrive(job, self.now)
        return self

    def go(self, job: Job) -> None:
        self.policy.leave(job, self.now)
        self.waiting.pop(job.id, None)
        self.running.pop(job.id, None)
        self.grants.pop(job.id, None)

    def switch(self, policy: Policy) -> None:
        hand_over(self.policy, policy, self.now)
        self.policy = policy
        self.agree()

    def decide(self) -> Decision:
        decision = self.policy.decide(self.slots, self.now)
        run, preempt = [grant.job.id for grant in decision.run], [job.id for job in decision.preempt]
        shed = [job.id for job in decision.shed]
        assert len({*run, *preempt, *shed}) == len(run) + len(preempt) + len(shed)
        assert all(grant.tokens >= 0 for grant in decision.run)
        for number in preempt:
            assert self.running[number].preemptible
            self.waiting[number] = self.running.pop(number)
            del self.grants[number]
        for number in shed:
            del self.waiting[number]
        for grant in decision.run:
            number = grant.job.id
            if number in self.waiting:
                self.running[number] = self.waiting.pop(number)
            assert number in self.running
            self.grants[number] = grant.tokens or None
        assert all(left is None or left > 0 for left in self.grants.values()), (
            "a job runs on though its grant is used up"
        )
        for what, who in (("run", run), ("preempt", preempt), ("shed", shed)):
            if who:
                self.history.append((self.now, what, tuple(who)))
        self.preemptions += len(preempt)
        self.shed += shed
        self.agree()
        assert len(self.running) >= min(self.slots, len(self.running) + len(self.waiting)), "a slot is idle"
        return decision

    def agree(self) -> None:
        """Check that the policy and the desk know the same jobs."""
        assert self.policy.waiting == len(self.waiting)
        line = [job.id for job in self.policy.queue()]
        assert len(line) == len(self.waiting)
        assert set(line) == set(self.waiting)
        assert {job.id for job in self.policy.running()} == set(self.running)

    def turn(self, seconds: float = 1.0) -> Desk:
        """Decide, then let each running job make a token in `seconds`."""
        self.decide()
        self.now += seconds
        for job in tuple(self.running.values()):
            job.tokens -= 1
            job.group.service += 1
            self.made[job.id] += 1
            self.policy.charge_tokens(job, 1, self.now)
            if (left := self.grants[job.id]) is not None:
                self.grants[job.id] = left - 1
            if not job.tokens:
                self.go(job)
                self.done.append(job.id)
        return self

    def charge_prompt(self, job: Job) -> None:
        """Account for the prompt of `job`."""
        job.group.service += PROMPT_WEIGHT * job.prompt
        self.policy.charge_prompt(job, job.prompt, self.now)

    def turns(self, count: int) -> Desk:
        for _ in range(count):
            self.turn()
        return self

    def finish(self, most: int = 100_000) -> Desk:
        """Take turns until no job is left."""
        for _ in range(most):
            if not self.waiting and not self.running:
                return self
            self.turn()
        raise AssertionError(f"still there after {most} turns: {sorted(self.waiting)}, {sorted(self.running)}")

    @property
    def on_slots(self) -> list[int]:
        return sorted(self.running)

    @property
    def line(self) -> list[int]:
        return [job.id for job in self.policy.queue()]


def play(desk: Desk, coming: Iterable[tuple[int, Job]], each: Callable[[int], None] = lambda turn: None) -> Desk:
    """Let jobs arrive at their turns and call `each` with the number of each turn, until no job is left."""
    left = sorted(coming, key=lambda one: one[0])
    turn = 0
    while left or desk.waiting or desk.running:
        while left and left[0][0] <= turn:
            desk.come(left.pop(0)[1])
        each(turn)
        desk.turn()
        turn += 1
        assert turn < 100_000
    return desk


def group(number: int, service: float = 0.0, **fields: object) -> SchedulingGroup:
    made = SchedulingGroup(number, **fields)  # type: ignore[arg-type]
    made.service = service
    return made
