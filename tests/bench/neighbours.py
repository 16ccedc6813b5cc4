"""How much of the machine others took while something was measured: what tells a calm figure from a disturbed one.

Used by benches that last.
"""

from __future__ import annotations

from time import perf_counter

import psutil


class Neighbours:
    """Looks from its making on, or from the last call of `share`. Ours are this process and its children."""

    def __init__(self) -> None:
        self._before = self._look()

    def share(self) -> float:
        """Processors that others kept busy since the last time, on average."""
        (then, others), now = self._before, self._look()
        self._before = now
        return max(0.0, (now[1] - others) / (now[0] - then))

    def _look(self) -> tuple[float, float]:
        """The time, and the processor seconds of others."""
        own = psutil.Process()
        ours = sum(sum(process.cpu_times()[:4]) for process in (own, *own.children(recursive=True)))
        machine = psutil.cpu_times()
        idle = machine.idle + machine.iowait + machine.guest + machine.guest_nice  # guests are in user already
        return perf_counter(), sum(machine) - idle - ours
