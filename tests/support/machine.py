"""A machine whose memory, processors and disk the test sets.

Every kernel under test samples it instead of the real one. It never reads the state of the real machine.
"""

from __future__ import annotations

from collections.abc import Iterable

from kernel.lib.machine import MachineSample
from tests.support.drivers import InLoopLauncher


class FakeMachine:
    """A machine of 16 GB. `sizes`: bytes that the driver of each model takes besides its KV."""

    def __init__(self, launcher: InLoopLauncher) -> None:
        self.cores = [0, 1, 2, 3]
        self.total = self.available = 16_000_000_000
        self.sizes: dict[str, int] = {}
        self.killed = 0
        self.disk_free = 10**11
        self._launcher = launcher

    def sample(self, pids: Iterable[int]) -> MachineSample:
        return MachineSample(
            cpu=0.5,
            memory_total=self.total,
            memory_available=self.available,
            disk_total=10**12,
            disk_free=self.disk_free,
            rss={pid: self.rss(pid) for pid in pids},
            oom_kills=self.killed,
        )

    def oom_kills(self) -> int:
        return self.killed

    def rss(self, pid: int) -> int:
        driver = next((driver for driver in self._launcher.drivers if driver.pid == pid), None)
        if driver is None:
            return 0
        return (self.sizes.get(driver.name, 0) + driver.memory.used + driver.leaked) * driver.alive
