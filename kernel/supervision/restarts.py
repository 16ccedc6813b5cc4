"""When a supervised child is started again: the bound on restarts, and the pause before each.

Pure and clockless: it is handed the time, and the chance. Used by the supervisor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class RestartIntensity:
    """At most `most` restarts within any `within` seconds; each after a pause that doubles while they follow closely.

    The pause is `first`, twice as long with each restart that is still within the window, at most `longest` seconds,
    and a random part of its second half is left out ("equal jitter": Brooker, "Exponential Backoff And Jitter", 2015).
    """

    def __init__(self, most: int, within: float, first: float, longest: float, chance: Callable[[], float]) -> None:
        self._most = most
        self._within = within
        self._first = first
        self._longest = longest
        self._chance = chance
        self._times: deque[float] = deque()

    def another(self, now: float) -> float | None:
        """Seconds to wait before one more restart; None if there have been too many."""
        while self._times and self._times[0] <= now - self._within:
            self._times.popleft()
        if len(self._times) >= self._most:
            return None
        self._times.append(now)
        # No exponent of a float overflows: more than 60 doublings are cut at the longest anyway.
        pause = min(self._longest, self._first * 2.0 ** min(len(self._times) - 1, 60))
        return pause * (1 - self._chance() / 2)
