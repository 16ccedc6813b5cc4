"""Every policy under any load: no job is lost or run twice, no slot is idle, and decisions are deterministic."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.errors import InvalidPolicy
from kernel.policy.group import SchedulingGroup
from kernel.policy.registry import KINDS, PolicySettings, check_policy, make_policy
from tests.support.policy_desk import Desk, Job, play

PATIENT = [kind for kind in KINDS if kind not in ("edf", "auto")]  # these promise that no job starves


def workload(draw: Any) -> list[tuple[int, Job]]:
    """Jobs of a few groups of a few owners, some with deadlines, priorities, prompts and costs."""
    random = draw(st.randoms(use_true_random=False))
    return make_workload(random, draw(st.integers(1, 25)))


def make_workload(dice: random.Random, count: int) -> list[tuple[int, Job]]:
    groups = [
        SchedulingGroup(number, owner=dice.choice("abc"), deadline=dice.choice([None, None, dice.uniform(1, 300)]))
        for number in range(dice.randint(1, 6))
    ]
    return [
        (
            dice.randint(0, 60),
            Job(
                number,
                dice.choice([1, 3, 10, 40]),
                group=dice.choice(groups),
                priority=dice.choice([0, 0, 0, dice.randint(-20, 20)]),
                prompt=dice.choice([0, 0, 5, 200]),
                critical_path=dice.choice([0.0, 12.5, 100.0]),
                switch_cost=dice.choice([0.0, 0.0, 0.0, 2.0]),
                preemptible=dice.random() > 0.1,
                limited=dice.random() > 0.3,
            ),
        )
        for number in range(count)
    ]


workloads = st.composite(workload)()
quanta = st.integers(1, 16)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100)
@given(coming=workloads, slots=st.integers(1, 5), quantum=quanta)
def test_no_job_is_lost_or_run_twice_and_no_slot_is_idle(
    kind: str, coming: list[tuple[int, Job]], slots: int, quantum: int
) -> None:
    tokens = {job.id: job.tokens for _, job in coming}
    desk = play(Desk(kind, slots, quantum=quantum), coming)
    assert sorted(desk.done + desk.shed) == sorted(tokens)
    assert all(desk.made[number] == tokens[number] for number in desk.done)
    assert not desk.shed or kind in ("edf", "auto")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), slots=st.integers(1, 4), quantum=quanta)
def test_the_same_load_gets_the_same_decisions(kind: str, seed: int, slots: int, quantum: int) -> None:
    first, second = (
        play(Desk(kind, slots, quantum=quantum), make_workload(random.Random(seed), 20)).history for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(
    coming=workloads,
    slots=st.integers(1, 4),
    moves=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 24), st.sampled_from("rhs"), st.integers(-20, 20))),
)
def test_jobs_that_are_held_back_ranked_and_let_go_are_not_lost(
    kind: str, coming: list[tuple[int, Job]], slots: int, moves: list[tuple[int, int, str, int]]
) -> None:
    desk = Desk(kind, slots, quantum=4)
    held: list[Job] = []

    def move(turn: int) -> None:
        for at, number, what, value in moves:
            job = desk.running.get(number) or desk.waiting.get(number)
            if at != turn or job is None:
                continue
            if what == "r":
                job.priority = value
                desk.policy.reprioritise(job, desk.now)
            elif what == "h":
                desk.go(job)
                held.append(job)
            else:
                desk.slots = 1 + abs(value) % 4
        if turn % 7 == 0 and held:
            job = held.pop()
            desk.waiting[job.id] = job
            desk.policy.arrive(job, desk.now)

    play(desk, coming, move)
    while held:
        job = held.pop()
        desk.waiting[job.id] = job
        desk.policy.arrive(job, desk.now)
    desk.finish()
    assert sorted(desk.done + desk.shed) == sorted(job.id for _, job in coming)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(
    coming=workloads,
    slots=st.integers(1, 4),
    switches=st.lists(st.tuples(st.integers(0, 60), st.sampled_from(KINDS)), min_size=1, max_size=8),
)
def test_a_switch_to_any_other_policy_loses_nothing(
    kind: str, coming: list[tuple[int, Job]], slots: int, switches: list[tuple[int, str]]
) -> None:
    tokens = {job.id: job.tokens for _, job in coming}
    desk = Desk(kind, slots, quantum=4)

    def switch(turn: int) -> None:
        for at, other in switches:
            if at == turn:
                desk.switch(make_policy(PolicySettings(kind=other, quantum=4)))

    play(desk, coming, switch)
    assert sorted(desk.done + desk.shed) == sorted(tokens)
    assert all(desk.made[number] == tokens[number] for number in desk.done)


@pytest.mark.parametrize("kind", KINDS)
def test_a_switch_alone_moves_nobody_who_has_a_slot_and_equals(kind: str) -> None:
    desk = Desk("fifo", slots=2).come(*(Job(number, 100) for number in range(6))).turns(3)
    assert desk.on_slots == [0, 1]
    desk.switch(make_policy(PolicySettings(kind=kind, quantum=50)))
    assert [job.id for job in desk.policy.running()] == [0, 1]
    desk.turn()
    if not kind.startswith(("attained",)):  # the running jobs have had service
        assert (desk.on_slots, desk.preemptions) == ([0, 1], 0)
    assert all(desk.policy.since(job) == 0.0 for job in desk.waiting.values() if job.id > 1)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_go_in_the_order_of_their_coming(kind: str) -> None:
    desk = Desk(kind, quantum=64).come(*(Job(number, 5) for number in range(8)))
    assert desk.finish().done == list(range(8))
    assert desk.preemptions == 0


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(slots=st.integers(1, 3), quantum=quanta, cost=st.sampled_from([0.0, 3.0]))
def test_no_slot_changes_hands_before_it_has_paid(kind: str, slots: int, quantum: int, cost: float) -> None:
    jobs = [Job(number, 60, owner="ab"[number % 2], switch_cost=cost, deadline=1e6 - number) for number in range(7)]
    desk = Desk(kind, slots, quantum=quantum, aging=1.0)
    got: dict[int, int] = {}
    play(desk, [(3 * number, job) for number, job in enumerate(jobs)])
    for _, what, who in desk.history:
        assert what != "shed", who
    at: dict[int, float] = {}
    for when, what, who in desk.history:
        for number in who:
            if what == "run" and number not in at:
                at[number] = when
            elif what == "preempt":
                got[number] = got.get(number, 0) + 1
                assert when - at.pop(number) >= 4 * cost
    tokens = 7 * 60
    assert desk.preemptions <= tokens / max(4 * cost, 1)


@pytest.mark.parametrize("kind", PATIENT)
@settings(max_examples=15)
@given(quantum=st.integers(1, 8), tokens=st.integers(1, 30), prompt=st.sampled_from([0, 1000]))
def test_a_stream_of_favoured_jobs_starves_nobody(kind: str, quantum: int, tokens: int, prompt: int) -> None:
    """The patient job is long, of low priority, and of the owner and the group that have had the most service."""
    desk = Desk(kind, quantum=quantum, aging=0.5, starvation=5.0)
    rich = SchedulingGroup(0, "rich")
    rich.service = 200.0
    patient = Job(0, tokens, group=rich, priority=-5, prompt=prompt, critical_path=200.0, limited=False)
    desk.come(Job(10_000, 3, owner="poor")).turn()
    desk.come(patient)
    number = 1
    while 0 not in desk.done:
        while len(desk.waiting) + len(desk.running) < 3:
            desk.come(Job(number, 2, owner="poor", priority=0))
            number += 1
        desk.turn()
        assert desk.now < 20_000, "the patient job starves"


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_stop_keeps_its_slot(kind: str) -> None:
    stubborn = Job(0, 50, preemptible=False, priority=-20, owner="a")
    desk = Desk(kind, quantum=1).come(stubborn).turn()
    desk.come(*(Job(number, 2, priority=20, owner="b", deadline=60 + number) for number in range(1, 4))).turns(40)
    assert desk.on_slots == [0]
    assert desk.grants[0] is None


def test_unknown_kinds_quanta_and_weights_are_refused_by_name() -> None:
    with pytest.raises(InvalidPolicy, match="no policy 'lottery'; the policies are: fifo, round_robin, priority"):
        make_policy(PolicySettings(kind="lottery"))
    with pytest.raises(InvalidPolicy, match="the quantum is 0"):
        check_policy(PolicySettings(kind="fair", quantum=0))
    with pytest.raises(InvalidPolicy, match="the weight of owner 'bob' is 0"):
        check_policy(PolicySettings(weights={"ann": 1.0, "bob": 0.0}))
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidPolicy, match="weight of owner 'bob'"):
            check_policy(PolicySettings(weights={"bob": weight}))
    for name in ("aging", "prompt_weight", "starvation"):
        with pytest.raises(InvalidPolicy, match=name):
            check_policy(PolicySettings(**{name: -1.0}))
