"""First come, first served and round robin, by hand-worked examples: a token takes a second."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.policy_desk import Desk, Job


def test_fifo_lets_the_first_finish_first_however_long_it_is() -> None:
    assert Desk("fifo").come(Job(0, 24), Job(1, 3), Job(2, 3)).finish().done == [0, 1, 2]


def test_round_robin_gives_a_quantum_to_each_in_turn() -> None:
    """The example of Silberschatz, Galvin, Gagne, 5.3.3: bursts of 24, 3 and 3, a quantum of 4."""
    desk = Desk("round_robin", quantum=4).come(Job(0, 24), Job(1, 3), Job(2, 3))
    desk.finish()
    assert desk.done == [1, 2, 0]
    assert desk.history == [
        (0.0, "run", (0,)),
        (4.0, "run", (1,)),
        (4.0, "preempt", (0,)),
        (7.0, "run", (2,)),
        (10.0, "run", (0,)),
        *((float(at), "run", (0,)) for at in (14, 18, 22, 26)),
    ]


@given(tokens=st.lists(st.integers(1, 30), min_size=2, max_size=12), slots=st.integers(1, 4), quantum=st.integers(1, 9))
def test_no_turn_of_round_robin_goes_on_after_its_quantum_while_others_wait(
    tokens: list[int], slots: int, quantum: int
) -> None:
    desk = Desk("round_robin", slots, quantum=quantum)
    desk.come(*(Job(number, count) for number, count in enumerate(tokens)))
    while desk.waiting or desk.running:
        before = set(desk.running)
        decision = desk.decide()
        assert all(grant.tokens == quantum for grant in decision.run)
        if before & {grant.job.id for grant in decision.run}:  # a job goes on only if all that wait were just preempted
            assert set(desk.waiting) == {job.id for job in decision.preempt}
        desk.turn()


def test_a_costly_preemption_stretches_the_quantum() -> None:
    desk = Desk("round_robin", quantum=4).come(*(Job(number, 40, switch_cost=5.0) for number in range(2)))
    desk.decide()
    assert desk.grants == {0: 20}
    assert desk.finish().preemptions == 2
