"""When each process is expected to make its next call: the driver's view of think times.

`kv_allocator` reports the calls of processes, the prefix cache asks. The kernel sends the think time that is usual for
a program with each call; this module never learns it from the calls it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

PATIENCE = 10.0  # seconds: the think time of a process while that of its program is unknown


class _ThinkTime:
    """The calls of one process and its think time.

    `calls`: how many it has made; `running`: how many of them have not ended; `last_ended`: when the last one ended;
    `expected`: its usual think time in seconds, 0 if unknown.
    """

    __slots__ = ("calls", "expected", "last_ended", "running")

    def __init__(self) -> None:
        self.calls = self.running = 0
        self.last_ended = self.expected = 0.0

    def remaining(self, now: float) -> float:
        """Seconds until its next call. A late process is expected to take as long again as it has been away."""
        if self.running:
            return self.expected or PATIENCE
        away = now - self.last_ended
        return max(self.expected - away, away) if self.expected else max(away, PATIENCE)


class ExpectedReturns:
    """The think times of all living processes that have made a call."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._now = clock
        self._of: dict[int, _ThinkTime] = {}

    def call_started(self, process: int, expected: float) -> None:
        """A call of `process` has started. `expected`: seconds from its end to the next call, 0 if unknown."""
        think_time = self._of.setdefault(process, _ThinkTime())
        think_time.calls += 1
        think_time.running += 1
        think_time.expected = expected

    def call_ended(self, process: int) -> None:
        """A call of `process` has ended."""
        think_time = self._of.get(process)
        if think_time is not None:
            think_time.running -= 1
            think_time.last_ended = self._now()

    def process_ended(self, process: int) -> None:
        """Forget `process`: it makes no more calls."""
        self._of.pop(process, None)

    def last_call(self, process: int) -> int:
        """The number of the last call of `process`, 0 if there is none."""
        think_time = self._of.get(process)
        return 0 if think_time is None else think_time.calls

    def remaining(self, calls: Mapping[int, int]) -> Iterator[float]:
        """Seconds until the next call of each process in `calls` whose last call has the number given there.

        A process is likely to want again what its last call used; what only earlier calls used, it may not.
        """
        now = self._now()
        for process, call in calls.items():
            think_time = self._of.get(process)
            if think_time is not None and think_time.calls == call:
                yield think_time.remaining(now)
