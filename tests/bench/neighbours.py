"""How busy other processes kept the machine during a measurement, so that a bench can discard disturbed figures.

Used by the decode bench. It never changes what other processes do.
"""

from __future__ import annotations

from time import perf_counter

import psutil


class Neighbours:
    """Counts from its creation on, or from the last call of `share`. This process and its children do not count."""

    def __init__(self) -> None:
        self._before = self._sample()

    def share(self) -> float:
        """Processors that other processes kept busy since the last time, on average."""
        (then, others), now = self._before, self._sample()
        self._before = now
        return max(0.0, (now[1] - others) / (now[0] - then))

    def _sample(self) -> tuple[float, float]:
        """The time, and the processor seconds of other processes so far."""
        own = psutil.Process()
        ours = sum(sum(process.cpu_times()[:4]) for process in (own, *own.children(recursive=True)))
        machine = psutil.cpu_times()
        idle = machine.idle + machine.iowait + machine.guest + machine.guest_nice  # guests are in user already
        return perf_counter(), sum(machine) - idle - ours
