"""A policy whose jobs have all left holds none of them, and its queues are as long as before they arrived."""

from __future__ import annotations

from collections import Counter

import pytest

from kernel.policy.group import SchedulingGroup
from kernel.policy.policy import Policy
from kernel.policy.registry import MAKERS, PolicySettings, make_policy
from tests.support.containers import count, grown
from tests.support.policy_desk import Job


def after(policy: Policy, first: int, jobs: int) -> Counter[str]:
    """Let `jobs` jobs arrive, run in part, and leave; return what `policy` then holds."""
    present = []
    for number in range(first, first + jobs):
        group = SchedulingGroup(number, f"owner {number % 7}", deadline=1e6 if number % 2 else None)
        present.append(Job(number, 1 + number % 40, group=group, priority=number % 3))
        policy.arrive(present[-1], float(number))
    for turn in range(20):
        now = float(first + jobs + turn)
        for job in policy.running():
            policy.charge_tokens(job, 3, now)
        policy.reprioritise(present[turn], now)
        policy.decide(4, now)
    for job in present:
        policy.leave(job, float(first + jobs + 20))
    policy.decide(4, float(first + jobs + 20))
    return count(policy, only=True)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_policy_holds_nothing_of_the_jobs_that_left(kind: str) -> None:
    policy = make_policy(PolicySettings(kind=kind, quantum=4))
    few = after(policy, 1, 20)
    many = after(policy, 100, 60)
    assert grown(few, many) == {}
    assert many["class QueueEntry"] == 0
