"""Attained service, by hand-worked examples: a token takes a second."""

from __future__ import annotations

import pytest

from tests.support.policy_desk import Desk, Job, group


def test_attained_puts_the_call_of_a_fresh_program_before_those_of_an_old_one() -> None:
    """Service counts by group and not by call: even a short call waits if its group has had much service."""
    old, fresh = group(1, service=500.0), group(2)
    desk = Desk("attained", quantum=8).come(Job(0, 4, group=old), Job(1, 4, group=old), Job(2, 20, group=fresh))
    assert desk.line == [2, 0, 1]
    assert desk.finish().done == [2, 0, 1]


@pytest.mark.parametrize(("kind", "places"), [("fifo", range(1, 11)), ("attained", range(10, 20))])
def test_a_program_that_fans_out_floods_a_fifo_and_not_attained_service(kind: str, places: range) -> None:
    """Nine of the ten calls of the wide group wait for the calls of the ten groups that arrived later."""
    wide = group(0)
    desk = Desk(kind, quantum=10, starvation=0.0)
    desk.come(*(Job(number, 10, group=wide) for number in range(10)))
    desk.come(*(Job(number, 10, group=group(number)) for number in range(10, 20)))
    desk.finish()
    assert [20 - place for place, number in enumerate(desk.done) if number >= 10] == list(reversed(places))


def test_attained_counts_what_its_program_has_had_while_a_call_waits() -> None:
    both, other = group(1), group(2)
    desk = Desk("attained", slots=1, quantum=8).come(Job(0, 8, group=both), Job(1, 8, group=both))
    desk.turns(7)
    desk.come(Job(2, 8, group=other)).turn()
    assert desk.turn().on_slots == [2]  # although 1 arrived first and has had no service itself
    assert desk.finish().done == [0, 2, 1]


def test_the_path_counts_and_not_the_width_of_a_program() -> None:
    """The group with the shorter critical path goes first, although it has had more service in sum."""
    wide, chain = group(1, service=100.0), group(2, service=60.0)
    jobs = [
        Job(0, 4, group=chain, critical_path=60.0),
        Job(1, 4, group=wide, critical_path=10.0),
        Job(2, 4, group=wide, critical_path=10.0),
    ]
    assert Desk("attained_dag", quantum=8).come(*jobs).finish().done == [1, 2, 0]
    jobs = [
        Job(0, 4, group=chain, critical_path=60.0),
        Job(1, 4, group=wide, critical_path=10.0),
        Job(2, 4, group=wide, critical_path=10.0),
    ]
    assert Desk("attained", quantum=8).come(*jobs).finish().done == [0, 1, 2]
