"""Highest response ratio next, by a hand-worked example: a token takes a second."""

from __future__ import annotations

from tests.support.policy_desk import Desk, Job


def test_hrrn_lets_the_short_pass_until_the_long_has_waited_for_its_length() -> None:
    desk = Desk("hrrn").come(Job(0, 30)).turn()
    desk.come(Job(1, 16)).turns(9)
    desk.come(Job(2, 4))
    desk.finish()
    # At 30 they have waited 29 and 20: ratios 1 + 29/16 and 1 + 20/4.
    assert desk.done == [0, 2, 1]
    desk = Desk("hrrn").come(Job(0, 30)).turn()
    desk.come(Job(1, 16)).turns(25)
    desk.come(Job(2, 4))
    # At 30: 1 + 29/16 and 1 + 4/4.
    assert desk.finish().done == [0, 1, 2]
