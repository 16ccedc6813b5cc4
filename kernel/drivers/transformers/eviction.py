"""The costs by which the prefix cache preserves, swaps or discards KV that no sequence uses now.

The prefix cache asks it when memory is short; it never sees a text. While a process is away (at a tool, or waiting for
a message), its KV costs memory until it returns, or time at its return: to read it or to compute it again. After
Abhyankar et al., "InferCept: Efficient Intercept Support for Augmented Large Language Model Inference" (ICML 2024),
section 4. The seconds between uses stand for the frequency in GreedyDual-Size-Frequency (Cherkasova, 1998).
"""

from __future__ import annotations

from collections.abc import Iterable

DEPTH = 4000  # tokens of context at which attention costs as much as the rest of the model
ONCE = 60.0  # seconds until the next use of a text that was used once, by no living process
SOON = 0.1  # seconds: no text is expected to be used sooner
OVERHEAD = 0.001  # seconds of a write or a read, in addition to those for its bytes
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

    `away`: for each process that is likely to want it, the seconds until its next call. The other estimate is the mean
    time between its `uses`, the `first` and the `last` at these times; if more time has passed since `last`, that.
    """
    between = (last - first) / (uses - 1) if uses > 1 else ONCE
    return max(SOON, min([max(between, now - last), *away]))


def _smoothed(before: float, now: float) -> float:
    return SMOOTHING * before + (1 - SMOOTHING) * now
