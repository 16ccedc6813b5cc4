"""Skip-join multi-level feedback, by hand-worked examples: a token takes a second."""

from __future__ import annotations

import itertools

from tests.support.policy_desk import Desk, Job


def test_mlfq_sinks_by_what_a_call_made_and_lets_a_fresh_one_pass_at_once() -> None:
    desk = Desk("mlfq", quantum=4, starvation=0.0).come(Job(0, 100), Job(1, 100))
    assert desk.turns(4).turn().on_slots == [1]  # 0 has left the first level
    desk.turns(3).turn()
    assert desk.on_slots == [0]
    desk.come(Job(2, 3)).turn()
    assert desk.on_slots == [2]
    desk.turns(2).turn()
    assert (desk.on_slots, desk.done) == ([0], [2])
    assert desk.grants[0] > 0


def test_mlfq_lets_a_long_prompt_join_below() -> None:
    """A prompt of 24 takes the time of 12 tokens: the first level that lasts as long is the third, of 16."""
    desk = Desk("mlfq", quantum=4, starvation=0.0).come(Job(0, 9, prompt=24), Job(1, 9), Job(2, 9))
    assert desk.line == [1, 2, 0]
    assert desk.finish().done == [1, 2, 0]


def test_mlfq_promotes_the_starved_for_a_turn_of_its_level() -> None:
    desk = Desk("mlfq", quantum=2, starvation=5.0).come(Job(0, 40)).turns(6)
    numbers = itertools.count(1)
    waited = 0
    while 0 not in desk.running or not waited:
        if len(desk.waiting) + len(desk.running) < 3:
            desk.come(Job(next(numbers), 2))
        desk.turn()
        waited += 1
    # It has made 6 tokens, so it is in the third level, of 8; it starves after 5 times the time that the 6 took.
    assert 30 <= waited <= 36
    assert desk.grants[0] == 7
