"""Think time: the seconds between two calls of a process, during a tool call, a wait for a message or a sleep.

Updated by the active sequences of a model, which send the expected think time to the driver with each generation. From
this time the driver decides whether to retain, swap out or discard the cached prefix that the process is going to use
again. It never sends anything itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from kernel.core.process import Process

SMOOTHING = 0.7  # weight of the past
PROGRAMS = 10_000  # programs whose think time is stored at most


class ThinkTimes:
    """The expected think time of each program, by name: its processes are assumed to be alike."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._expected: OrderedDict[str, float] = OrderedDict()  # seconds
        self._last_end: dict[int, float] = {}  # by pid of a live process: when its last call ended

    def expected(self, program: str) -> float:
        """Seconds from the end of a call to the next call of the same process; 0 if none has made two calls yet."""
        return self._expected.get(program, 0.0)

    def call_began(self, process: Process) -> None:
        """`process` makes a call: update the expected think time of its program."""
        left = self._last_end.pop(process.pid, None)
        if left is None:
            return
        seconds, before = self._clock() - left, self._expected.pop(process.program, None)
        self._expected[process.program] = seconds if before is None else SMOOTHING * before + (1 - SMOOTHING) * seconds
        if len(self._expected) > PROGRAMS:
            self._expected.popitem(last=False)

    def call_ended(self, process: Process) -> None:
        """A call of `process` has ended."""
        if process.status is None:
            self._last_end[process.pid] = self._clock()

    def processes_ended(self, pids: Iterable[int]) -> None:
        """Forget these processes; they make no more calls."""
        for pid in pids:
            self._last_end.pop(pid, None)
