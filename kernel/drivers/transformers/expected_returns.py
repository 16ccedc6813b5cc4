"""When each process is expected to make its next call: the driver's view of think times.

`kv_allocator` reports the calls of processes, the prefix cache asks. With each call the kernel sends the usual think
time of the program. This module never learns think times from the calls that it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

PATIENCE = 10.0  # seconds: the think time of a process whose program has no known think time


class _ThinkTime:
    """The calls of one process and its think time.

    `calls`: how many calls it has made; `running`: how many of these have not ended; `last_ended`: the time when a call
    last ended; `expected`: its usual think time in seconds, 0 if unknown.
    """

    __slots__ = ("calls", "expected", "last_ended", "running")

    def __init__(self) -> None:
        self.calls = self.running = 0
        self.last_ended = self.expected = 0.0

    def remaining(self, now: float) -> float:
        """Seconds until its next call: the rest of its think time, but at least as long as it has been away already."""
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
        """A call of `process` has started. `expected`: seconds from its end to the next call, or 0 if unknown."""
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
        """The number of the last call of `process`, 0 if it has made none."""
        think_time = self._of.get(process)
        return 0 if think_time is None else think_time.calls

    def remaining(self, calls: Mapping[int, int], now: float) -> Iterator[float]:
        """Seconds from `now` until the next call of each process whose last call has the number given in `calls`.

        A process is likely to use again the prefix of its last call, but not those that only earlier calls used.
        """
        for process, call in calls.items():
            think_time = self._of.get(process)
            if think_time is not None and think_time.calls == call:
                yield think_time.remaining(now)
