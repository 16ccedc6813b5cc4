"""The costs by which the prefix cache decides to preserve, swap or discard KV that no sequence uses now.

The prefix cache asks when memory is short; this module never sees a text. A process may be away, at a tool or waiting
for a message. Its KV then costs memory until the process returns, or costs time when it returns, to be read or computed
again. After Abhyankar et al., "InferCept: Efficient Intercept Support for Augmented Large Language Model Inference"
(ICML 2024), section 4. The seconds until the next use stand for the frequency in GreedyDual-Size-Frequency (Cherkasova,
1998).
"""

from __future__ import annotations

from collections.abc import Iterable

DEPTH = 4000  # tokens of context at which attention costs as much as the rest of the model
ONCE = 60.0  # seconds until the next use of a prefix that was used once, if no process is likely to want it sooner
SOON = 0.1  # seconds: no prefix is expected to be used sooner
OVERHEAD = 0.001  # seconds that a write or a read takes besides the time for its bytes
SMOOTHING = 0.7  # weight of the past in a measured rate


class Rates:
    """The speeds of this machine, guessed until they are measured.

    `token`: seconds to compute one token of a prompt; `write` and `read`: bytes per second.
    """

    def __init__(self) -> None:
        self.token = 1e-3
        self.write = self.read = 1e9

    def record_write(self, size: int, seconds: float) -> None:
        self.write = _smoothed(self.write, size / max(seconds, 1e-9))

    def record_read(self, size: int, seconds: float) -> None:
        self.read = _smoothed(self.read, size / max(seconds, 1e-9))

    def computing(self, start: int, end: int) -> float:
        """Seconds to compute the tokens from `start` to `end` again. A token with more tokens before it costs more."""
        return self.token * (end - start) * (1 + (start + end) / 2 / DEPTH)

    def writing(self, size: int) -> float:
        """Seconds to write `size` bytes."""
        return OVERHEAD + size / self.write

    def reading(self, size: int) -> float:
        """Seconds to read `size` bytes."""
        return OVERHEAD + size / self.read


def seconds_until_use(now: float, first: float, last: float, uses: int, away: Iterable[float]) -> float:
    """Seconds from `now` until a prefix is likely to be used again: the least of two estimates.

    One estimate is the mean time between its `uses`, of which the `first` and the `last` were at these times, or the
    time since the last use, if that is longer. The other estimate is the least of `away`: for each process that is
    likely to want the prefix, the seconds until its next call.
    """
    between = (last - first) / (uses - 1) if uses > 1 else ONCE
    return max(SOON, min([max(between, now - last), *away]))


def _smoothed(before: float, now: float) -> float:
    return SMOOTHING * before + (1 - SMOOTHING) * now
