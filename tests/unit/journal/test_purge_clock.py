"""Old tasks are deleted after `keep` seconds, and no fresh one is, whatever is done to the time of day."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from kernel.journal import clock
from kernel.journal.clock import PurgeClock
from kernel.journal.settings import FILE
from kernel.journal.store import open_store
from tests.support.journal_desk import end, task

KEEP = 100.0


class Machine:
    """A steady clock, and a time of day that a test sets."""

    def __init__(self) -> None:
        self.now, self.difference = 0.0, 1_000_000.0
        self.clock = PurgeClock(KEEP, lambda: self.now + self.difference, lambda: self.now)

    @property
    def time(self) -> float:
        return self.now + self.difference

    def pass_(self, seconds: float) -> None:
        """Let time pass, with a purge in each second."""
        for _ in range(int(seconds)):
            self.now += 1
            self.clock.bound()


@pytest.mark.parametrize("jump", [10 * KEEP, -10 * KEEP, KEEP / 2, -KEEP / 2])
def test_after_a_jump_the_results_of_the_last_seconds_stay_for_their_time(jump: float) -> None:
    machine = Machine()
    machine.pass_(50)
    before = machine.time
    machine.difference += jump
    assert machine.clock.bound() <= before
    after = machine.time
    machine.pass_(KEEP - 1)
    assert machine.clock.bound() <= min(before, after)
    machine.pass_(2)
    assert machine.clock.bound() > after


@pytest.mark.parametrize("jump", [10 * KEEP, -10 * KEEP, KEEP / 2, -KEEP / 2])
def test_what_ended_between_a_jump_and_the_next_purge_stays_for_its_time(jump: float) -> None:
    machine = Machine()
    machine.pass_(50)
    machine.now += KEEP / 4
    before = machine.time
    machine.difference += jump
    after = machine.time
    machine.now += KEEP / 4  # the first purge since
    assert machine.clock.bound() <= min(before, after)
    machine.pass_(3 * KEEP / 4 - 1)
    assert machine.clock.bound() <= min(before, after)
    machine.pass_(KEEP)
    assert machine.clock.bound() > after


def test_a_jump_between_two_purges_counts_if_the_clock_was_looked_at_meanwhile() -> None:
    machine = Machine()
    machine.pass_(50)
    machine.difference -= 10 * KEEP
    ended = machine.time
    machine.clock.look()
    machine.difference += 10 * KEEP
    machine.pass_(KEEP - 2)
    assert machine.clock.bound() <= ended
    machine.pass_(3)
    assert machine.clock.bound() > ended


@pytest.mark.parametrize("seed", range(20))
def test_however_the_clock_jumps_nothing_is_deleted_before_its_time_and_all_of_it_later(seed: int) -> None:
    rng, machine = random.Random(seed), Machine()
    ended: dict[int, tuple[float, float]] = {}  # by number: steady, and as it was stored
    for number in range(600):
        machine.now += 1
        if rng.random() < 0.1:
            machine.difference += rng.choice([-1, 1]) * rng.choice([2, 30, 1_000, 1e7])
        ended[number] = machine.now, machine.time
        machine.clock.look()
        if rng.random() < 0.5:
            continue
        bound = machine.clock.bound()
        for one, (at, stored) in list(ended.items()):
            if stored > machine.time:  # as the store does: it counts as ended now
                ended[one] = at, machine.time
            elif stored < bound:
                assert machine.now - at >= KEEP
                del ended[one]
    machine.pass_(2 * KEEP)
    assert all(stored < machine.clock.bound() for _, stored in ended.values())


def test_the_clock_remembers_a_bounded_number_of_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "MOST_JUMPS", 10)
    machine = Machine()
    lowest = machine.time
    for _ in range(50):
        machine.now += 1
        machine.difference += 1_000
        machine.clock.bound()
    assert len(machine.clock._jumps) == 10
    assert machine.clock.bound() <= lowest


def test_what_ended_in_the_future_counts_as_ended_now(tmp_path: Path) -> None:
    store = open_store(tmp_path / FILE, "off")
    with store.transaction():
        store.begin_run(5)
        outcomes = store.accept([task(1), task(2)])
        store.finish([end(outcomes[0].id, ended=5_000.0), end(outcomes[1].id, ended=900.0)])  # type: ignore[union-attr]
    with store.transaction():
        assert not store.purge(0.0, now=1_000.0)
    assert sorted(row.ended or math.nan for row in store.history(9, None)) == [900.0, 1_000.0]
    store.close()


def test_an_end_between_a_jump_back_and_the_next_purge_counts_as_fresh() -> None:
    machine = Machine()
    machine.pass_(5)
    machine.difference -= 10 * KEEP
    machine.now += 2  # without a purge
    ended = machine.time
    machine.now += 1
    assert machine.clock.bound() <= ended
