"""Weighted fair queueing, by hand-worked examples and within its proven bound: a token takes a second."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.policy.registry import PolicySettings, make_policy
from tests.support.policy_desk import Desk, Job


def test_fair_serves_owners_and_not_calls() -> None:
    """One owner with nine calls and one with one: each gets half."""
    desk = Desk("fair", quantum=5)
    desk.come(*(Job(number, 100, owner="many") for number in range(9)), Job(9, 100, owner="one"))
    desk.turns(100)
    assert abs(desk.made[9] - 50) <= 5


def test_fair_gives_an_owner_its_weight() -> None:
    desk = Desk("fair", slots=2, quantum=3, weights={"heavy": 3.0})
    desk.come(*(Job(number, 1000, owner=["light", "heavy"][number % 2]) for number in range(8)))
    desk.turns(400)
    heavy = sum(made for number, made in desk.made.items() if number % 2)
    assert abs(heavy - 600) <= 12
    other = make_policy(PolicySettings(kind="fair", quantum=3))
    assert other is not desk.policy


def test_fair_counts_prompts_at_their_price() -> None:
    desk = Desk("fair", quantum=10, prompt_weight=0.5)
    reader = Job(0, 10, owner="reads", prompt=80)
    desk.come(reader, Job(1, 45, owner="writes"), Job(2, 10, owner="reads"), Job(3, 45, owner="writes"))
    desk.turn()
    desk.charge_prompt(reader)
    # The first costs 50, so its owner waits for the 45 tokens of the other and a little more.
    assert desk.finish().done == [0, 1, 2, 3]


def test_who_was_idle_has_saved_nothing_up() -> None:
    desk = Desk("fair", quantum=5).come(*(Job(number, 200, owner="busy") for number in range(2))).turns(100)
    desk.come(Job(2, 200, owner="late"), Job(3, 200, owner="late")).turns(100)
    assert abs(desk.made[2] + desk.made[3] - 50) <= 5


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), slots=st.integers(1, 4), quantum=st.integers(1, 12), weight=st.floats(0.2, 5))
def test_the_service_gap_of_busy_owners_stays_within_the_proven_bound(
    seed: int, slots: int, quantum: int, weight: float
) -> None:
    dice = random.Random(seed)
    desk = Desk("fair", slots, quantum=quantum, weights={"b": weight})
    served = {"a": 0.0, "b": 0.0}
    prompt = 20
    gaps: list[float] = []
    numbers = itertools.count()
    for _ in range(300):
        for owner in "ab":  # always busy: more jobs wait than there are slots
            while sum(job.group.owner == owner for job in desk.waiting.values()) <= slots:
                desk.come(Job(next(numbers), dice.randint(1, 40), owner=owner, prompt=dice.randint(0, prompt)))
        before = set(desk.made) - set(desk.waiting) - set(desk.running)
        desk.decide()
        for number, job in desk.running.items():
            if not desk.made[number] and number not in before and job.prompt:
                desk.charge_prompt(job)
                served[job.group.owner] += 0.5 * job.prompt
                job.prompt = 0
        for job in desk.running.values():
            served[job.group.owner] += 1
        desk.turn()
        gaps.append(served["a"] - served["b"] / weight)
    bound = 2 * slots * (0.5 * prompt + quantum) / min(1, weight)
    assert max(gaps) - min(gaps) <= bound
