"""The think time of a program, as the kernel learns it: the seconds between two calls of a process."""

from __future__ import annotations

from typing import Any, cast

from kernel.models.think_time import PROGRAMS, ThinkTimes
from tests.support.virtual_time import Clock


class Process:
    def __init__(self, pid: int, program: str = "chatty") -> None:
        self.pid = pid
        self.program = program
        self.status: object | None = None


def called(think_times: ThinkTimes, clock: Clock, process: Process, away: float) -> None:
    """A call that takes a second, `away` seconds after the last."""
    clock.now += away
    think_times.call_began(cast("Any", process))
    clock.now += 1
    think_times.call_ended(cast("Any", process))


def test_what_is_usual_is_learned_by_program_and_from_end_to_beginning() -> None:
    clock = Clock()
    think_times = ThinkTimes(clock)
    called(think_times, clock, Process(1), 100)
    assert think_times.expected("chatty") == 0
    called(think_times, clock, Process(1), 8)
    assert think_times.expected("chatty") == 8
    called(think_times, clock, Process(2), 100)  # the first call of another process: no think time ends with it
    assert think_times.expected("chatty") == 8
    called(think_times, clock, Process(2), 4)
    assert 4 < think_times.expected("chatty") < 8
    assert think_times.expected("other") == 0


def test_nothing_is_remembered_of_processes_that_have_ended() -> None:
    clock = Clock()
    think_times = ThinkTimes(clock)
    one, other = Process(1), Process(2)
    called(think_times, clock, one, 1)
    think_times.processes_ended([1])
    think_times.call_began(cast("Any", other))
    other.status = "ended"
    think_times.call_ended(cast("Any", other))
    assert think_times._last_end == {}


def test_so_many_programs_are_known_and_no_more() -> None:
    clock = Clock()
    think_times = ThinkTimes(clock)
    for number in range(PROGRAMS + 10):
        process = Process(number, f"program {number}")
        for _ in range(2):
            called(think_times, clock, process, 1)
    assert len(think_times._expected) == PROGRAMS
    assert think_times.expected("program 0") == 0
    assert think_times.expected(f"program {PROGRAMS}") == 1
