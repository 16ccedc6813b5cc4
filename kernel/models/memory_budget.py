"""The memory of all drivers together: how much they may take, how much they take, and how much is missing.

The residency builds on it, and the memory balancer asks it. It reads samples of the machine; it never loads or unloads
a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ipc.errors import LlmosError, ModelLoadFailed
from kernel.lib.machine import Machine, MachineSample
from kernel.lib.units import show_size
from kernel.models.resident import Resident
from kernel.models.settings import ResourceSettings

RESERVE = 0.05  # part of the machine's memory that no driver may use
PRESSURE = 0.1  # memory is short if less than this part of the machine's memory is available
SMOOTHING = 0.5  # weight of the past in the available memory
TOLERANCE = 1 / 32  # part of the configured budget by which the drivers may exceed it before a model is unloaded for it
# A shortage of up to this part of the budget is met by KV memory, if the drivers can give up so much: they evict cached
# prefixes, and sequences are swapped out. A larger one is met by idle models first.
SMALL = 1 / 16


class Supply(NamedTuple):
    """The memory of all drivers at one moment, in bytes, so that a decision about many models reads it once.

    `full`, `budget`, `room` and `spare_kv`: see `MemoryBudget`. `tolerated`: by how much a model that starts may exceed
    the room. `ending`: the models about to leave memory, and `ending_memory`: what they free. `idle_memory`: what the
    largest idle model would free.
    """

    residents: list[Resident]
    ending: list[Resident]
    full: int
    budget: int
    room: int
    spare_kv: int
    tolerated: int
    ending_memory: int
    idle_memory: int

    def fits(self, need: int, *, giving_up_kv: bool = False) -> bool:
        """Whether `need` bytes are free, or little enough is missing.

        The drivers give up KV memory for a small shortage, and with `giving_up_kv` also for a larger one.
        """
        missing = need - self.room
        allowed = max(self.tolerated, self.spare_kv) if giving_up_kv or missing <= SMALL * self.full else self.tolerated
        return missing <= allowed


class MemoryBudget:
    """`sample`: the last sample of the machine. `runtimes` returns all models."""

    def __init__(
        self, settings: ResourceSettings, machine: Machine, runtimes: Callable[[], Iterable[Resident]]
    ) -> None:
        self._settings = settings
        self._machine = machine
        self._runtimes = runtimes
        self.sample = machine.sample(())
        self._available = float(self.sample.memory_available)

    def observe(self, sample: MachineSample) -> None:
        """Take in a sample of the machine. The available memory is smoothed, the memory of drivers is not."""
        self.sample = sample
        for runtime in self._runtimes():
            if (rss := sample.rss.get(runtime.pid or 0)) is not None:
                runtime.footprint.sampled(rss)
        self._available = SMOOTHING * self._available + (1 - SMOOTHING) * sample.memory_available

    @property
    def full_budget(self) -> int:
        """Bytes for all drivers together, as configured."""
        return self._settings.budget(self.sample.memory_total)

    @property
    def budget(self) -> int:
        """Bytes for all drivers together now: as configured, or as many as the machine can give if that is less."""
        taken = sum(runtime.footprint.rss for runtime in self._runtimes())
        left = self._available - RESERVE * self.sample.memory_total
        return max(min(self.full_budget, int(taken + left)), 0)

    def shortage(self) -> str:
        """Evidence that the operating system has just killed a process for lack of memory; empty if there is none."""
        sample = self.sample
        if self._machine.oom_kills() > sample.oom_kills:
            return "the operating system killed a process for lack of memory"
        if min(self._available, sample.memory_available) >= PRESSURE * sample.memory_total:
            return ""
        return f"{show_size(sample.memory_available)} of {show_size(sample.memory_total)} was free"

    @property
    def room(self) -> int:
        """The budget less the `minimum` of each model in memory, in bytes; negative if they exceed the budget."""
        return self.budget - sum(runtime.footprint.minimum for runtime in self.residents())

    def supply(self) -> Supply:
        """The memory of all drivers now."""
        full, budget, residents = self.full_budget, self.budget, self.residents()
        ending = [runtime for runtime in residents if runtime.state.frees_memory]
        return Supply(
            residents,
            ending,
            full,
            budget,
            room=budget - sum(runtime.footprint.minimum for runtime in residents),
            spare_kv=self.spare_kv,
            tolerated=self.tolerance // 2 if budget == full else 0,
            ending_memory=sum(runtime.footprint.minimum for runtime in ending),
            idle_memory=max(
                (one.footprint.minimum for one in residents if one.state.idle_since is not None), default=0
            ),
        )

    def residents(self) -> list[Resident]:
        """The models in memory, and those that are being loaded or unloaded."""
        return [runtime for runtime in self._runtimes() if runtime.takes_memory]

    def too_large(self, runtime: Resident) -> LlmosError | None:
        """The error for `runtime` if it alone takes more memory than all drivers together may take, else None."""
        need = runtime.footprint.size
        if need <= self.full_budget:
            return None
        return ModelLoadFailed(
            f"model {runtime.name} takes {show_size(need)}, but all drivers together may take "
            f"{show_size(self.full_budget)}; raise resources.memory in the settings, or use a smaller model"
        )

    @property
    def tolerance(self) -> int:
        """Bytes by which the drivers may exceed the budget before a model is unloaded for it."""
        if self.budget == self.full_budget:
            return int(TOLERANCE * self.full_budget)
        return int(RESERVE * self.sample.memory_total) // 8  # other programs take the memory

    @property
    def spare_kv(self) -> int:
        """Bytes of KV memory that the drivers can give up: their sequences are then swapped out."""
        return sum(runtime.footprint.spare_kv for runtime in self.residents() if runtime.state.ready_at is not None)
