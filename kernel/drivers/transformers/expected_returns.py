"""Who is away: processes that were served and may come back, and for how long they are likely to stay away.

Told by `kv_allocator` of their calls, asked by the prefix cache. What is usual for a program the kernel says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

PATIENCE = 10.0  # seconds that a process is taken to be away whose program was never seen to come back


class _ThinkTime:
    """How often and for how long one process stays away between its calls.

    `calls` counts its calls, `running` those that run. `left` is when the last one ended, `usual` the seconds after
    which the process usually comes back, 0 if unknown.
    """

    __slots__ = ("calls", "left", "running", "usual")

    def __init__(self) -> None:
        self.calls = self.running = 0
        self.left = self.usual = 0.0

    def remaining(self, now: float) -> float:
        """Seconds for which it is likely to stay away. Who is late is likely to wait as long again."""
        if self.running:
            return self.usual or PATIENCE
        gone = now - self.left
        return max(self.usual - gone, gone) if self.usual else max(gone, PATIENCE)


class ExpectedReturns:
    """Of all processes that have called and live."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._now = clock
        self._of: dict[int, _ThinkTime] = {}

    def called(self, process: int, usual: float) -> None:
        """A call of `process` has begun, whose program comes back so many seconds after one; 0 if nobody knows."""
        think_time = self._of.setdefault(process, _ThinkTime())
        think_time.calls += 1
        think_time.running += 1
        think_time.usual = usual

    def left(self, process: int) -> None:
        """A call of it is over."""
        think_time = self._of.get(process)
        if think_time is not None:
            think_time.running -= 1
            think_time.left = self._now()

    def ended(self, process: int) -> None:
        """It does not come back."""
        self._of.pop(process, None)

    def call(self, process: int) -> int:
        """The number of its last call."""
        think_time = self._of.get(process)
        return 0 if think_time is None else think_time.calls

    def remaining(self, calls: Mapping[int, int]) -> Iterator[float]:
        """Seconds for which each process is likely to stay away whose last call is the one named.

        A process is likely to want again what its last call used, but maybe not what earlier calls used.
        """
        now = self._now()
        for process, call in calls.items():
            think_time = self._of.get(process)
            if think_time is not None and think_time.calls == call:
                yield think_time.remaining(now)
