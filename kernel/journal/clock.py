"""The clock by which old tasks are deleted: it deletes no fresh result when the time of day jumps.

The writer asks it before each purge, on its thread. The journal stores times of day, which an operator or NTP may set
to anything. This clock compares them with the seconds since the machine started, which nothing sets, and which count
while the machine sleeps. It never changes a time that is stored.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

TOLERANCE = 1.0  # seconds by which the time of day may drift without a new entry
MOST_JUMPS = 1000  # entries; beyond them, the oldest two become one


def time_of_day() -> float:
    """Seconds since the epoch, of `time.time` as it is at this call: fault injection replaces it."""
    return time.time()


def steady() -> float:
    """Seconds since the machine started, including those during which it was asleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class PurgeClock:
    """Knows the times of day that the machine showed in the last `keep` seconds of this run.

    An entry of `_jumps` is a moment at which the time of day jumped, by the steady clock, and the difference between
    the clocks since then. The first entry also stands for the time before the run.
    """

    def __init__(
        self,
        keep: float,
        time_of_day: Callable[[], float] = time_of_day,
        steady: Callable[[], float] = steady,
    ) -> None:
        self._keep = keep
        self._time_of_day = time_of_day
        self._steady = steady
        self._jumps: deque[tuple[float, float]] = deque()
        self._called = steady()
        self.bound()

    def bound(self) -> float:
        """The lowest time of day that the machine showed in the last `keep` seconds.

        A task whose end has a lower time ended more than `keep` seconds ago, whatever was done to the clock. Call this
        regularly: a jump counts from the previous call on.
        """
        now = self._steady()
        difference = self._time_of_day() - now
        if not self._jumps or abs(difference - self._jumps[-1][1]) > TOLERANCE:
            self._jumps.append((self._called, difference))  # at the earliest: tasks may have ended since
        self._called = now
        since = now - self._keep
        while len(self._jumps) > 1 and self._jumps[1][0] <= since:
            self._jumps.popleft()
        if len(self._jumps) > MOST_JUMPS:
            (first, one), (_, other) = self._jumps.popleft(), self._jumps.popleft()
            self._jumps.appendleft((first, min(one, other)))
        (_, first_difference), *later = self._jumps
        return min(since + first_difference, *(at + difference for at, difference in later), self._time_of_day())
