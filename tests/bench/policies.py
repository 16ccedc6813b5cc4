"""The cost of a decision of each policy with 10, 1,000 and 10,000 calls waiting. Run by `make bench`.

64 slots, calls of 8 owners, and one program for every four calls. In a turn each running call makes a token, and each
call that ends is replaced by a new one. A decision that moves no call costs next to nothing, so the figures are
amortised: over the decisions, two per turn, and over all events of a policy. Those of `auto` include its changes of
kind, which hand over the whole queue.
"""

from __future__ import annotations

import random
import statistics
import sys
from time import perf_counter

from rich.console import Console
from rich.table import Table

from kernel.policy.group import SchedulingGroup
from kernel.policy.registry import KINDS, PolicySettings, make_policy

SLOTS = 64
LINES = (10, 1_000, 10_000)
TURNS = 2_000
ROUNDS = 3
BOUND = 20.0  # microseconds


class Job:
    """One call of the load."""

    preemptible = True
    switch_cost = 0.0

    def __init__(self, number: int, dice: random.Random, group: SchedulingGroup) -> None:
        self.id = number
        self.group = group
        self.priority = dice.choice([0, 0, 0, -5, 5])
        self.prompt = dice.randint(0, 500)
        self.tokens = self.limit = dice.randint(1, 200)
        self.critical_path = dice.uniform(0, 500)


def measure(kind: str, waiting: int) -> tuple[float, float]:
    """Microseconds per decision alone, and per event, decisions included."""
    dice = random.Random(0)
    policy = make_policy(PolicySettings(kind=kind))
    programs = [
        SchedulingGroup(number, owner=f"owner{number % 8}", deadline=dice.uniform(1e5, 1e6))
        for number in range((waiting + SLOTS) // 4)
    ]
    running: dict[int, Job] = {}
    last = 0
    now = spent = decisions = 0.0
    events = 0

    def come() -> None:
        nonlocal last
        last += 1
        policy.arrive(Job(last, dice, dice.choice(programs)), now)

    for _ in range(waiting + SLOTS):
        come()
    for turn in range(TURNS + 20):
        if turn == 20:
            spent = decisions = 0.0
            events = 0
        start = perf_counter()
        decision = policy.decide(SLOTS, now)
        took = perf_counter() - start
        decisions += took
        spent += took
        for job in decision.preempt:
            running.pop(job.id)
        for grant in decision.run:
            running[grant.job.id] = grant.job  # type: ignore[assignment]
        now += 0.05
        for job in tuple(running.values()):
            job.tokens -= 1
            job.limit -= 1
            job.group.service += 1
            start = perf_counter()
            policy.charge_tokens(job, 1, now)
            if not job.tokens:
                policy.leave(job, now)
                come()
                events += 2
            spent += perf_counter() - start
            events += 1
            if not job.tokens:
                del running[job.id]
        # A bundle has arrived: the slots ask for another decision.
        start = perf_counter()
        again = policy.decide(SLOTS, now)
        took = perf_counter() - start
        decisions += took
        spent += took
        for job in again.preempt:
            running.pop(job.id)
        for grant in again.run:
            running[grant.job.id] = grant.job  # type: ignore[assignment]
        events += 2
    return decisions / (2 * TURNS) * 1e6, spent / events * 1e6


def main() -> None:
    table = Table(title=f"A decision, and any event amortised, in microseconds; {SLOTS} slots, medians of {ROUNDS}")
    table.add_column("policy")
    for line in LINES:
        table.add_column(f"decision, {line:,} wait", justify="right")
        table.add_column("event", justify="right")
    worst = 0.0
    for kind in KINDS:
        row = [kind]
        for line in LINES:
            rounds = [measure(kind, line) for _ in range(ROUNDS)]
            decision, event = (statistics.median(values) for values in zip(*rounds, strict=True))
            row += [f"{decision:.1f}", f"{event:.2f}"]
            worst = max(worst, decision if line == LINES[-1] else 0.0)
        table.add_row(*row)
    Console().print(table)
    print(f"worst decision with {LINES[-1]:,} waiting: {worst:.1f} us; the bound is {BOUND:g} us")
    sys.exit(worst > BOUND)


if __name__ == "__main__":
    main()
