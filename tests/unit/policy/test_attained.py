"""Attained service, by hand-worked examples: a token takes a second."""

from __future__ import annotations

import pytest

from tests.support.policy_desk import Desk, Job, program


def test_attained_puts_the_call_of_a_fresh_program_before_those_of_an_old_one() -> None:
    """Calls are strangers to each other and programs are not: the tenth short call of a long one waits."""
    old, fresh = program(1, service=500.0), program(2)
    desk = Desk("attained", quantum=8).come(Job(0, 4, program=old), Job(1, 4, program=old), Job(2, 20, program=fresh))
    assert desk.line == [2, 0, 1]
    assert desk.finish().done == [2, 0, 1]


@pytest.mark.parametrize(("kind", "places"), [("fifo", range(1, 11)), ("attained", range(10, 20))])
def test_a_program_that_fans_out_floods_a_fifo_and_not_attained_service(kind: str, places: range) -> None:
    """Nine of its ten calls wait for those of the ten programs that came after it."""
    wide = program(0)
    desk = Desk(kind, quantum=10, starvation=0.0)
    desk.come(*(Job(number, 10, program=wide) for number in range(10)))
    desk.come(*(Job(number, 10, program=program(number)) for number in range(10, 20)))
    desk.finish()
    assert [20 - place for place, number in enumerate(desk.done) if number >= 10] == list(reversed(places))


def test_attained_counts_what_its_program_has_had_while_a_call_waits() -> None:
    both, other = program(1), program(2)
    desk = Desk("attained", slots=1, quantum=8).come(Job(0, 8, program=both), Job(1, 8, program=both))
    desk.turns(7)
    desk.come(Job(2, 8, program=other)).turn()
    assert desk.turn().on_slots == [2]  # though 1 came first, and had nothing itself
    assert desk.finish().done == [0, 2, 1]


def test_the_path_counts_and_not_the_width_of_a_program() -> None:
    """A wide program of two short steps goes before a chain that is as long as its sum."""
    wide, chain = program(1, service=100.0), program(2, service=60.0)
    jobs = [Job(0, 4, program=chain, path=60.0), Job(1, 4, program=wide, path=10.0), Job(2, 4, program=wide, path=10.0)]
    assert Desk("attained_dag", quantum=8).come(*jobs).finish().done == [1, 2, 0]
    jobs = [Job(0, 4, program=chain, path=60.0), Job(1, 4, program=wide, path=10.0), Job(2, 4, program=wide, path=10.0)]
    assert Desk("attained", quantum=8).come(*jobs).finish().done == [0, 1, 2]
