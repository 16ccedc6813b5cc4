"""Strict priority with aging, by itself: a pure object that gets the time as an argument."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from kernel.policy.fifo import Fifo
from kernel.policy.policy import hand_over
from kernel.policy.priority import PriorityWithAging


class Job:
    """A job of the test. `tokens`: how many it has yet to make."""

    def __init__(self, number: int, priority: int = 0, tokens: int = 10, preemptible: bool = True) -> None:
        self.id = number
        self.priority = priority
        self.tokens = tokens
        self.preemptible = preemptible
        self.switch_cost = 0.0
        self.limit = 0


class Taken(NamedTuple):
    run: list[int]
    preempt: list[int]


def policy(*jobs: Job, aging: float = 0.1, quantum: int = 8) -> PriorityWithAging:
    made = PriorityWithAging(aging, quantum)
    for job in jobs:
        made.arrive(job, 0.0)
    return made


def decide(made: PriorityWithAging, slots: int = 1, now: float = 0.0) -> Taken:
    decision = made.decide(slots, now)
    return Taken([grant.job.id for grant in decision.run], [job.id for job in decision.preempt])


def test_the_most_urgent_run_and_within_one_priority_the_first_to_come() -> None:
    made = policy(Job(1, -5), Job(2, 3), Job(3, 0), Job(4, 3))
    assert [job.id for job in made.queue()] == [2, 4, 3, 1]
    assert decide(made, slots=3) == ([2, 4, 3], [])
    assert (made.waiting, decide(made, slots=3)) == (1, ([], []))


def test_an_urgent_job_takes_the_slot_of_the_least_urgent_the_last_of_several() -> None:
    made = policy(Job(1), Job(2), Job(3, 5))
    decide(made, slots=3)
    made.arrive(Job(4, 1), 1.0)
    assert decide(made, slots=3, now=1.0) == ([4], [2])
    made.arrive(Job(5, 1), 1.0)
    assert decide(made, slots=3, now=1.0) == ([5], [1])
    made.arrive(Job(6, 1), 1.0)
    assert decide(made, slots=3, now=1.0) == ([], [])


def test_equals_do_not_preempt_each_other_however_long_one_waits() -> None:
    made = policy(Job(1), Job(2))
    assert decide(made) == ([1], [])
    assert decide(made, now=1e6) == ([], [])


def test_a_preempted_job_goes_on_in_its_place() -> None:
    made = policy(*(Job(number) for number in (1, 2, 3)))
    decide(made)
    urgent = Job(4, 9)
    made.arrive(urgent, 1.0)
    assert decide(made, now=1.0) == ([4], [1])
    assert [job.id for job in made.queue()] == [1, 2, 3]
    made.leave(urgent, 2.0)
    assert decide(made, now=2.0) == ([1], [])


def test_what_waits_long_enough_gets_a_quantum_of_a_more_urgent_slot() -> None:
    urgent, patient = Job(1, 5), Job(2, 0)
    made = policy(urgent, patient, aging=0.5, quantum=8)
    assert decide(made) == ([1], [])
    assert decide(made, now=11.9) == ([], [])
    assert decide(made, now=12.0) == ([2], [1])  # 0 + 0.5 * 12 is one more than 5
    made.charge_tokens(patient, 7, 13.0)
    assert decide(made, now=13.0) == ([], [])
    made.charge_tokens(patient, 1, 14.0)
    assert decide(made, now=14.0) == ([1], [2])
    made.charge_tokens(urgent, 8, 20.0)
    assert decide(made, now=25.9) == ([], [])
    assert decide(made, now=26.0) == ([2], [1])


def test_someone_more_urgent_still_preempts_at_once_what_got_its_slot_by_aging() -> None:
    made = policy(Job(1, 5), Job(2, 0), aging=0.5)
    decide(made)
    assert decide(made, now=12.0) == ([2], [1])
    made.arrive(Job(3, 7), 12.5)
    assert decide(made, now=12.5) == ([3], [2])
    # Job 2 has not used up its quantum, so it need not wait as long again.
    assert [job.id for job in made.queue()] == [1, 2]
    made.leave(Job(3, 7), 13.0)
    assert decide(made, now=13.0) == ([2], [])


def test_without_aging_only_priority_counts() -> None:
    made = policy(Job(1, 1), Job(2, 0), aging=0)
    decide(made)
    assert decide(made, now=1e9) == ([], [])


def test_a_job_that_cannot_stop_is_not_preempted() -> None:
    made = policy(Job(1, 0, preemptible=False), Job(2, 1))
    assert decide(made, slots=2) == ([2, 1], [])
    made.arrive(Job(3, 20), 1.0)
    assert decide(made, slots=2, now=1.0) == ([3], [2])


def test_a_new_priority_counts_at_once_for_those_who_wait_and_those_who_run() -> None:
    first, second, third = Job(1), Job(2), Job(3)
    made = policy(first, second, third)
    decide(made)
    third.priority = 4
    made.reprioritise(third, 1.0)
    assert decide(made, now=1.0) == ([3], [1])
    third.priority = -4
    made.reprioritise(third, 2.0)
    assert decide(made, now=2.0) == ([1], [3])
    assert [job.id for job in made.queue()] == [2, 3]


def test_fewer_slots_take_none_from_those_who_run() -> None:
    made = policy(Job(1), Job(2), Job(3))
    decide(made, slots=2)
    assert decide(made, slots=1) == ([], [])
    assert decide(made, slots=0) == ([], [])


jobs = st.lists(
    st.tuples(st.integers(-20, 20), st.integers(1, 40), st.floats(0, 100)), min_size=1, max_size=25
)  # priority, tokens, time of arrival


@given(
    jobs=jobs,
    slots=st.integers(1, 4),
    aging=st.floats(0.01, 5),
    quantum=st.integers(1, 20),
    ranked=st.lists(st.tuples(st.integers(0, 25), st.integers(-20, 20)), max_size=20),  # a job, its new priority
)
def test_all_finish_no_slot_is_idle_and_none_is_given_twice(
    jobs: list[tuple[int, int, float]], slots: int, aging: float, quantum: int, ranked: list[tuple[int, int]]
) -> None:
    made = PriorityWithAging(aging, quantum)
    jobs = sorted(jobs, key=lambda job: job[2])
    coming = [(at, Job(number, priority, tokens)) for number, (priority, tokens, at) in enumerate(jobs)]
    running: dict[int, Job] = {}
    waiting: dict[int, Job] = {}
    now, exchanges = 0.0, 0
    while coming or waiting or running:
        while coming and coming[0][0] <= now:
            job = coming.pop(0)[1]
            waiting[job.id] = job
            made.arrive(job, now)
        decision = made.decide(slots, now)
        run, preempt = [grant.job for grant in decision.run], decision.preempt
        assert not {job.id for job in run} & {job.id for job in preempt}
        for job in preempt:
            waiting[job.id] = running.pop(job.id)  # type: ignore[index]
        for job in run:
            running[job.id] = waiting.pop(job.id)  # type: ignore[index]
        exchanges += len(preempt)
        assert len(running) == min(slots, len(running) + len(waiting))
        assert made.waiting == len(waiting) == len(made.queue())
        for job in list(running.values()):
            job.tokens -= 1
            made.charge_tokens(job, 1, now)
            if not job.tokens:
                made.leave(running.pop(job.id), now)
        now += 1.0
        if ranked:
            number, priority = ranked.pop()
            moved = running.get(number) or waiting.get(number)
            if moved is not None:
                moved.priority = priority
                made.reprioritise(moved, now)
                jobs.append((0, 0, 0.0))
    # Each exchange is due to a job that arrived, to a new priority, or to aging; one by aging lasts for a quantum.
    tokens = sum(count for _, count, _ in jobs)
    assert exchanges <= 2 * (len(jobs) + tokens / min(quantum, 1 / aging + 1))


@given(level=st.integers(-20, 19), aging=st.floats(0.05, 2))
def test_a_stream_of_urgent_jobs_starves_nobody(level: int, aging: float) -> None:
    made = PriorityWithAging(aging, quantum=4)
    patient, now, number = Job(0, level, tokens=9), 0.0, 1
    made.arrive(patient, now)
    made.arrive(Job(number, 20), now)
    ran = 0
    running: list[int] = []
    while ran < 9:
        decision = made.decide(1, now)
        run, preempt = [grant.job for grant in decision.run], decision.preempt
        running = [one for one in [*running, *(job.id for job in run)] if one not in [job.id for job in preempt]]
        if running == [0]:
            ran += 1
            made.charge_tokens(patient, 1, now)
        else:
            made.leave(Job(running.pop(), 20), now)
            number += 1
            made.arrive(Job(number, 20), now)
        now += 1.0
    assert now <= 9 + 4 * ((21 - level) / aging + 2)


def test_a_job_taken_over_from_another_policy_is_preempted_only_by_one_that_aged_a_whole_priority_above_it() -> None:
    before, running, waiting = Fifo(), Job(1, 2), Job(2, 0)
    before.arrive(running, 0.0)
    before.decide(1, 0.0)
    before.arrive(waiting, 0.0)
    made = policy()
    hand_over(before, made, 22.0)  # by now the waiting job has aged to 2.2
    assert [decide(made, now=22.0), decide(made, now=22.1), decide(made, now=29.9)] == [([1], []), ([], []), ([], [])]
    assert decide(made, now=30.1) == ([2], [1])


def test_a_running_job_with_a_new_priority_is_preempted_by_that_priority_in_its_quantum_too() -> None:
    first, second = Job(1, 5), Job(2, 0)
    made = policy(first, second)
    decide(made)
    first.priority = 3
    made.reprioritise(first, 1.0)
    assert decide(made, now=39.0) == ([], [])  # the other has aged to 3.9
    assert decide(made, now=41.0) == ([2], [1])
