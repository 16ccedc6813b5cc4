"""The outlook of a waiting job: the rule that decides, and the running job that gives up its slot first."""

from __future__ import annotations

import pytest

from kernel.policy.group import SchedulingGroup
from kernel.policy.registry import KINDS
from tests.support.policy_desk import Desk, Job


def waiting(kind: str, first: Job, second: Job, steps: int = 3, **settings: int) -> Desk:
    """A desk with one slot, on which `first` has made some tokens while `second` waits."""
    desk = Desk(kind, 1, **settings)
    desk.come(first)
    desk.come(second)
    for _ in range(steps):
        desk.turn()
    return desk


@pytest.mark.parametrize("kind", KINDS)
def test_every_policy_has_an_outlook_for_each_waiting_job_and_asking_changes_nothing(kind: str) -> None:
    desk = Desk(kind, 2, quantum=4)
    for number in range(1, 7):
        desk.come(Job(number, 30, group=SchedulingGroup(number, owner="ab"[number % 2]), priority=number % 3))
    for _ in range(5):
        desk.turn()
        before = [job.id for job in desk.policy.queue()]
        assert before
        for job in desk.policy.queue():
            outlook = desk.policy.outlook(job, desk.now)
            assert outlook.rule
            assert outlook.yields is None or outlook.yields in desk.policy.running()
        assert [job.id for job in desk.policy.queue()] == before


def test_round_robin_names_the_job_whose_quantum_ends_first() -> None:
    first, second = Job(1, 50), Job(2, 50)
    desk = waiting("round_robin", first, second, quantum=10)
    outlook = desk.policy.outlook(second, desk.now)
    assert (outlook.yields, outlook.tokens) == (first, 7)


@pytest.mark.parametrize("kind", ["fifo", "hrrn"])
def test_policies_without_preemption_take_no_slot_away(kind: str) -> None:
    second = Job(2, 50)
    desk = waiting(kind, Job(1, 50), second)
    outlook = desk.policy.outlook(second, desk.now)
    assert outlook.yields is None
    assert outlook.rule.endswith("takes no slot away")


def test_fair_names_the_job_of_the_owner_with_more_service() -> None:
    first = Job(1, 50, group=SchedulingGroup(1, owner="a"))
    second = Job(2, 50, group=SchedulingGroup(2, owner="b"))
    desk = waiting("fair", first, second, quantum=10)
    outlook = desk.policy.outlook(second, desk.now)
    assert (outlook.yields, outlook.tokens) == (first, 7)
    assert outlook.rule.endswith("which is 0 tokens for the owner of this call; on the slots, the most is 3")


def test_priority_says_when_aging_overtakes_the_running_job() -> None:
    first, second = Job(1, 500, priority=2), Job(2, 50)
    desk = waiting("priority", first, second)
    rule = desk.policy.outlook(second, desk.now).rule
    assert rule.startswith("runs higher priorities first (this call has 0, and the lowest on a slot is 2); by waiting")
    seconds = float(rule.rpartition(" in ")[2].removesuffix(" s"))
    desk.now += seconds - 1
    assert not desk.policy.decide(1, desk.now).preempt
    desk.now += 1.1
    assert desk.policy.decide(1, desk.now).preempt == [first]


def test_edf_says_how_far_the_deadline_is() -> None:
    first = Job(1, 50, group=SchedulingGroup(1, deadline=100.0))
    second = Job(2, 50, group=SchedulingGroup(2, deadline=200.0))
    desk = waiting("edf", first, second)
    assert "which is in " in desk.policy.outlook(second, desk.now).rule


@pytest.mark.parametrize("kind", ["mlfq", "attained", "attained_dag"])
def test_multilevel_policies_name_the_level_and_the_job_that_sinks_first(kind: str) -> None:
    first = Job(1, 500, group=SchedulingGroup(1))
    second = Job(2, 50, group=SchedulingGroup(2))
    desk = waiting(kind, first, second, quantum=10)
    outlook = desk.policy.outlook(second, desk.now)
    assert outlook.rule.startswith("prefers calls with little service, in levels: this one is at level 0")
    assert (outlook.yields, outlook.tokens) == (first, 7)
