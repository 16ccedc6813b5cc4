"""The bound on the restarts of supervised children, and the pause before each restart.

Used by the supervisor. This module is pure: it is passed the time and random numbers, and never reads a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class RestartIntensity:
    """At most `most` restarts within any `within` seconds. The pauses double while restarts follow closely.

    A pause is `first` seconds, doubled for each earlier restart of the last `within` seconds, and at most `longest`
    seconds. Then it is shortened by a random amount, up to half of it ("equal jitter": Brooker, "Exponential Backoff
    And Jitter", 2015). `chance` returns random numbers from 0 to 1.
    """

    def __init__(self, most: int, within: float, first: float, longest: float, chance: Callable[[], float]) -> None:
        self._most = most
        self._within = within
        self._first = first
        self._longest = longest
        self._chance = chance
        self._times: deque[float] = deque()

    def next_pause(self, now: float) -> float | None:
        """Count one more restart. Returns the seconds to wait before it, or None if there have been too many."""
        while self._times and self._times[0] <= now - self._within:
            self._times.popleft()
        if len(self._times) >= self._most:
            return None
        self._times.append(now)
        # At most 60 doublings, so that the float does not overflow. `longest` bounds the pause well before that.
        pause = min(self._longest, self._first * 2.0 ** min(len(self._times) - 1, 60))
        return pause * (1 - self._chance() / 2)
