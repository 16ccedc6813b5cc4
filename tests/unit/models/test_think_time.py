"""How long processes stay away between calls: by the kernel for each program, by the driver for each process."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kernel.drivers.transformers.absence import PATIENCE
from kernel.drivers.transformers.absence import Absences as InDriver
from kernel.slots.absence import PROGRAMS, Absences


class Process:
    def __init__(self, pid: int, program: str = "chatty") -> None:
        self.pid = pid
        self.program = program
        self.status: object | None = None


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def called(absences: Absences, clock: Clock, process: Process, away: float) -> None:
    """A call that takes a second, `away` seconds after the last."""
    clock.now += away
    absences.began(cast(Any, process))
    clock.now += 1
    absences.over(cast(Any, process))


def test_what_is_usual_is_learned_by_program_and_from_end_to_beginning() -> None:
    clock = Clock()
    absences = Absences(clock)
    called(absences, clock, Process(1), 100)
    assert absences.usual("chatty") == 0
    called(absences, clock, Process(1), 8)
    assert absences.usual("chatty") == 8
    called(absences, clock, Process(2), 100)  # another process: it does not come back, it comes
    assert absences.usual("chatty") == 8
    called(absences, clock, Process(2), 4)
    assert 4 < absences.usual("chatty") < 8
    assert absences.usual("other") == 0


def test_nothing_is_remembered_of_processes_that_have_ended() -> None:
    clock = Clock()
    absences = Absences(clock)
    one, other = Process(1), Process(2)
    called(absences, clock, one, 1)
    absences.ended([1])
    absences.began(cast(Any, other))
    other.status = "ended"
    absences.over(cast(Any, other))
    assert absences._left == {}


def test_so_many_programs_are_known_and_no_more() -> None:
    clock = Clock()
    absences = Absences(clock)
    for number in range(PROGRAMS + 10):
        process = Process(number, f"program {number}")
        for _ in range(2):
            called(absences, clock, process, 1)
    assert len(absences._usual) == PROGRAMS
    assert absences.usual("program 0") == 0
    assert absences.usual(f"program {PROGRAMS}") == 1


def remaining(absences: InDriver, process: int) -> float:
    (seconds,) = absences.remaining({process: absences.call(process)})
    return seconds


def test_who_is_away_is_expected_when_it_is_usual_and_after_that_as_late_again() -> None:
    clock = Clock()
    absences = InDriver(clock)
    absences.called(1, usual=10.0)
    assert remaining(absences, 1) == 10
    absences.left(1)
    clock.now = 3
    assert remaining(absences, 1) == 7
    clock.now = 8
    assert remaining(absences, 1) == 8
    clock.now = 40
    assert remaining(absences, 1) == 40


def test_who_was_never_seen_to_come_back_is_waited_for_patiently() -> None:
    clock = Clock()
    absences = InDriver(clock)
    absences.called(1, usual=0.0)
    absences.left(1)
    clock.now = 1
    assert remaining(absences, 1) == PATIENCE
    clock.now = 4 * PATIENCE
    assert remaining(absences, 1) == 4 * PATIENCE


@pytest.mark.parametrize("ended", [False, True])
def test_what_was_used_by_an_earlier_call_or_by_nobody_is_not_waited_for(ended: bool) -> None:
    clock = Clock()
    absences = InDriver(clock)
    absences.called(1, 1.0)
    first = absences.call(1)
    if ended:
        absences.ended(1)
    else:
        absences.called(1, 1.0)
    assert list(absences.remaining({1: first})) == []
