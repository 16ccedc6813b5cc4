"""Earliest deadline first, by hand-worked examples and against the best order: a token takes a second."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.policy.registry import PolicySettings, make_policy
from tests.support.policy_desk import Desk, Job, play


def test_edf_preempts_for_an_earlier_deadline_and_meets_all_that_can_be_met() -> None:
    desk = Desk("edf").come(Job(0, 10, deadline=100.0), Job(1, 10)).turns(3)
    desk.come(Job(2, 5, deadline=20.0)).turn()
    assert desk.on_slots == [2]
    assert desk.finish().done == [2, 0, 1]
    assert desk.shed == []


def test_edf_sheds_what_cannot_be_done_in_time_and_only_while_it_waits() -> None:
    desk = Desk("edf")
    for number in range(30):  # it learns that calls use up their limits, at a token a second
        desk.come(Job(number, 4, deadline=1e6))
    desk.finish()
    desk.come(Job(100, 20, deadline=desk.now + 10)).turn()
    assert desk.shed == [100]
    hopeful = Job(101, 8, deadline=desk.now + 10)
    desk.come(hopeful).turn()
    hopeful.group.deadline = desk.now - 1
    assert desk.finish().done[-1] == 101


def test_edf_sheds_nothing_that_may_yet_be_short() -> None:
    """Until the policy knows how much of their limits calls use, it assumes that one token is enough."""
    desk = Desk("edf").come(Job(0, 3, deadline=50.0), Job(1, 1000, deadline=20.0))
    desk.turns(2)
    assert (desk.shed, desk.on_slots) == ([], [1])
    late = Job(2, 1, deadline=1.0)
    desk.come(late).turn()
    assert desk.shed == [2]


def test_edf_takes_the_quickest_pace_of_late_since_a_batch_may_get_smaller() -> None:
    policy = make_policy(PolicySettings(kind="edf"))
    policy.arrive(Job(0, 100), 0.0)
    policy.decide(1, 0.0)
    now = 0.0
    for seconds in (1.0, *[10.0] * 20):  # alone, and then beside many others
        now += seconds
        policy.charge_tokens(Job(0, 100), 1, now)
    policy.arrive(Job(1, 1, deadline=now + 5), now)
    assert not policy.decide(1, now).shed
    policy.arrive(Job(2, 1, deadline=now + 1), now)
    assert [job.id for job in policy.decide(1, now).shed] == [2]


def _feasible(dice: random.Random, count: int) -> list[tuple[int, Job]]:
    """Jobs whose deadlines can all be met, with some slack: by the order in which they are made here."""
    jobs, busy = [], 0
    for number in range(count):
        at = busy + dice.randint(-6, 3)
        tokens = dice.randint(1, 8)
        busy = max(busy, at) + tokens
        jobs.append((max(at, 0), Job(number, tokens, deadline=busy + dice.choice([0.0, 1.0, 9.0]))))
    return jobs


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 25))
def test_edf_meets_all_deadlines_on_one_slot_that_any_order_meets(seed: int, count: int) -> None:
    jobs = _feasible(random.Random(seed), count)
    ends: dict[int, float] = {}
    desk = Desk("edf")

    def note_ends(turn: int) -> None:
        for number in desk.done:
            ends.setdefault(number, desk.now)

    play(desk, jobs, note_ends)
    note_ends(0)
    assert desk.shed == []
    assert all(ends[job.id] <= job.group.deadline for _, job in jobs if job.group.deadline is not None)
