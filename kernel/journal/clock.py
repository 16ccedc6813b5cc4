"""The clock by which old tasks are deleted: it deletes no fresh result when the time of day jumps.

The writer asks it before each purge, on its thread. The journal stores times of day, which an operator or NTP may set
to anything. This clock compares them with the seconds since the machine started, which nothing sets, and which count
while the machine sleeps. It never changes a time that is stored.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

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

    An entry of `_jumps` is a period, by the steady clock, in which the time of day jumped, and the difference between
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
        self._jumps: deque[_Jump] = deque()
        self._looked = steady()
        self.look()

    def look(self) -> float:
        """Compare the clocks. Returns the steady one. Two jumps between two calls that cancel out are not seen."""
        now = self._steady()
        difference = self._time_of_day() - now
        if not self._jumps or abs(difference - self._jumps[-1].difference) > TOLERANCE:
            self._jumps.append(_Jump(self._looked, now, difference))
        self._looked = now
        return now

    def bound(self) -> float:
        """The lowest time of day that the machine showed in the last `keep` seconds.

        A task whose end has a lower time ended more than `keep` seconds ago, whatever was done to the clock.
        """
        since = self.look() - self._keep
        while len(self._jumps) > 1 and self._jumps[1].last <= since:
            self._jumps.popleft()
        if len(self._jumps) > MOST_JUMPS:
            one, other = self._jumps.popleft(), self._jumps.popleft()
            self._jumps.appendleft(one._replace(difference=min(one.difference, other.difference)))
        first, *later = self._jumps
        shown = [max(jump.first, since) + jump.difference for jump in later]
        return min(since + first.difference, *shown, self._time_of_day())


class _Jump(NamedTuple):
    first: float  # it happened after this,
    last: float  # and before this
    difference: float
