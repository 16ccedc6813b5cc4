"""How long the processes of a program stay away between their calls, as the kernel learns it."""

from __future__ import annotations

from typing import Any, cast

from kernel.models.think_time import PROGRAMS, Absences
from tests.support.virtual_time import Clock


class Process:
    def __init__(self, pid: int, program: str = "chatty") -> None:
        self.pid = pid
        self.program = program
        self.status: object | None = None


def called(absences: Absences, clock: Clock, process: Process, away: float) -> None:
    """A call that takes a second, `away` seconds after the last."""
    clock.now += away
    absences.began(cast("Any", process))
    clock.now += 1
    absences.over(cast("Any", process))


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
    absences.began(cast("Any", other))
    other.status = "ended"
    absences.over(cast("Any", other))
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
