"""The driver's expectation of when each process makes its next call."""

from __future__ import annotations

import pytest

from kernel.drivers.transformers.expected_returns import PATIENCE, ExpectedReturns
from tests.support.virtual_time import Clock


def remaining(expected_returns: ExpectedReturns, process: int, now: float) -> float:
    (seconds,) = expected_returns.remaining({process: expected_returns.last_call(process)}, now)
    return seconds


def test_who_is_away_is_expected_when_it_is_usual_and_after_that_as_late_again() -> None:
    clock = Clock()
    expected_returns = ExpectedReturns(clock)
    expected_returns.call_started(1, expected=10.0)
    assert remaining(expected_returns, 1, clock.now) == 10
    expected_returns.call_ended(1)
    clock.now = 3
    assert remaining(expected_returns, 1, clock.now) == 7
    clock.now = 8
    assert remaining(expected_returns, 1, clock.now) == 8
    clock.now = 40
    assert remaining(expected_returns, 1, clock.now) == 40


def test_who_was_never_seen_to_come_back_is_waited_for_patiently() -> None:
    clock = Clock()
    expected_returns = ExpectedReturns(clock)
    expected_returns.call_started(1, expected=0.0)
    expected_returns.call_ended(1)
    clock.now = 1
    assert remaining(expected_returns, 1, clock.now) == PATIENCE
    clock.now = 4 * PATIENCE
    assert remaining(expected_returns, 1, clock.now) == 4 * PATIENCE


@pytest.mark.parametrize("ended", [False, True])
def test_what_was_used_by_an_earlier_call_or_by_nobody_is_not_waited_for(ended: bool) -> None:
    clock = Clock()
    expected_returns = ExpectedReturns(clock)
    expected_returns.call_started(1, 1.0)
    first = expected_returns.last_call(1)
    if ended:
        expected_returns.process_ended(1)
    else:
        expected_returns.call_started(1, 1.0)
    assert list(expected_returns.remaining({1: first}, clock.now)) == []
