"""How long processes stay away between two of their calls: at a tool, waiting for a message, asleep.

Kept by the workload of a model. It tells the driver, with each call, what is usual for its program, so that what the
process will want again is kept, swapped or discarded by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kernel.core.process import Process

SMOOTHING = 0.7  # weight of the past
PROGRAMS = 10_000  # that are known at most


class ThinkTimes:
    """By the name of the program: its processes are expected to be alike."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._usual: dict[str, float] = {}  # seconds
        self._left: dict[int, float] = {}  # when the last call of a process ended that has called and lives

    def usual(self, program: str) -> float:
        """Seconds from a call's end to the next call of the same process; 0 if none was seen to come back."""
        return self._usual.get(program, 0.0)

    def began(self, process: Process) -> None:
        """It makes a call."""
        left = self._left.pop(process.pid, None)
        if left is None:
            return
        seconds, before = self._clock() - left, self._usual.pop(process.program, None)
        self._usual[process.program] = seconds if before is None else SMOOTHING * before + (1 - SMOOTHING) * seconds
        if len(self._usual) > PROGRAMS:
            del self._usual[next(iter(self._usual))]

    def over(self, process: Process) -> None:
        """A call of it has ended."""
        if process.status is None:
            self._left[process.pid] = self._clock()

    def ended(self, pids: Iterable[int]) -> None:
        """These processes have."""
        for pid in pids:
            self._left.pop(pid, None)
