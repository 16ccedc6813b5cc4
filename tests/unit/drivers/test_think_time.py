"""How long each process stays away between its calls, as the driver expects it."""

from __future__ import annotations

import pytest

from kernel.drivers.transformers.expected_returns import PATIENCE
from kernel.drivers.transformers.expected_returns import ExpectedReturns as InDriver
from tests.support.virtual_time import Clock


def remaining(think_times: InDriver, process: int) -> float:
    (seconds,) = think_times.remaining({process: think_times.call(process)})
    return seconds


def test_who_is_away_is_expected_when_it_is_usual_and_after_that_as_late_again() -> None:
    clock = Clock()
    think_times = InDriver(clock)
    think_times.called(1, usual=10.0)
    assert remaining(think_times, 1) == 10
    think_times.left(1)
    clock.now = 3
    assert remaining(think_times, 1) == 7
    clock.now = 8
    assert remaining(think_times, 1) == 8
    clock.now = 40
    assert remaining(think_times, 1) == 40


def test_who_was_never_seen_to_come_back_is_waited_for_patiently() -> None:
    clock = Clock()
    think_times = InDriver(clock)
    think_times.called(1, usual=0.0)
    think_times.left(1)
    clock.now = 1
    assert remaining(think_times, 1) == PATIENCE
    clock.now = 4 * PATIENCE
    assert remaining(think_times, 1) == 4 * PATIENCE


@pytest.mark.parametrize("ended", [False, True])
def test_what_was_used_by_an_earlier_call_or_by_nobody_is_not_waited_for(ended: bool) -> None:
    clock = Clock()
    think_times = InDriver(clock)
    think_times.called(1, 1.0)
    first = think_times.call(1)
    if ended:
        think_times.ended(1)
    else:
        think_times.called(1, 1.0)
    assert list(think_times.remaining({1: first})) == []
