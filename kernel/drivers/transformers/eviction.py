"""What becomes of keys and values that nobody reads just now: they are kept, swapped or discarded, by the least waste.

Asked by the prefix cache when memory is short. It knows seconds and bytes, and no texts. While a process is away, at a
tool or waiting for a message, what it will want again costs memory for as long as it is away, or time when it comes
back: to read it from the disk, or to compute it anew. What goes is what costs the least time for the memory, and the
time for which that is free; it goes the cheaper way. After Abhyankar et al., "InferCept: Efficient Intercept Support
for Augmented Large Language Model Inference" (ICML 2024), section 4. How often a text is used, for its cost and its
size, is what GreedyDual-Size-Frequency goes by, too (Cherkasova, 1998); here it is measured in seconds between uses.
"""

from __future__ import annotations

from collections.abc import Iterable

DEPTH = 4000  # tokens of context at which attention costs as much as all the rest
ONCE = 60.0  # the same until a text is used again that was used once, by nobody who lives
SOON = 0.1  # seconds: nothing is taken to be used sooner
OVERHEAD = 0.001  # seconds to write or read something, besides its bytes
SMOOTHING = 0.7  # weight of the past in what is measured


class Rates:
    """What things cost on this machine: guesses until they are measured.

    `token` is in seconds to compute one token of a prompt, `write` and `read` are in bytes per second.
    """

    def __init__(self) -> None:
        self.token = 1e-3
        self.write = self.read = 1e9

    def wrote(self, size: int, seconds: float) -> None:
        self.write = _smoothed(self.write, size / max(seconds, 1e-9))

    def was_read(self, size: int, seconds: float) -> None:
        self.read = _smoothed(self.read, size / max(seconds, 1e-9))

    def computing(self, start: int, end: int) -> float:
        """Seconds to compute the tokens from `start` to `end` anew: each costs the more the more it looks at."""
        return self.token * (end - start) * (1 + (start + end) / 2 / DEPTH)

    def writing(self, size: int) -> float:
        """Seconds to write so many bytes."""
        return OVERHEAD + size / self.write

    def reading(self, size: int) -> float:
        """Seconds to read them back."""
        return OVERHEAD + size / self.read


def unused(now: float, first: float, last: float, uses: int, away: Iterable[float]) -> float:
    """Seconds until something is likely to be used again.

    Its next user is one of those that will want it and stay `away` for so long, or the one that used it `uses` times,
    for the `first` and the `last` time then.
    """
    between = (last - first) / (uses - 1) if uses > 1 else ONCE
    return max(SOON, min([max(between, now - last), *away]))


def _smoothed(before: float, now: float) -> float:
    return SMOOTHING * before + (1 - SMOOTHING) * now
