"""The balance of memory: how much each driver may use for keys and values, and how many of its slots are given out.

Looked at when a model was loaded, and with every sample of the machine. It shrinks at once and grows in steps, says
why in the log and in the listing of slots, and leaves loading and unloading to the residency.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kernel.lib.units import show_size
from kernel.models.footprint import Footprint
from kernel.models.residency import Residency, Resident

DEADBAND = 1 / 8  # changes smaller than this are not worth a message
GROWTH = 2.0  # at most, from one step to the next
GROW_INTERVAL = 5.0  # seconds between two steps of growth
LEAST_KV = 1 << 20  # bytes


def allot(budget: int, footprints: Sequence[Footprint]) -> list[int]:
    """Bytes of keys and values for each of the drivers: what it has to have, and an equal part of what is left.

    If nothing is left, each gives an equal part, down to what it cannot do without: that may be less than it uses.
    """
    sharers = sum(1 for footprint in footprints if footprint.shares)
    left = budget - sum(footprint.least for footprint in footprints)
    shares = []
    for footprint in footprints:
        share = max(footprint.kv_least + left // max(sharers, 1), footprint.kv_floor, LEAST_KV)
        shares.append(share if footprint.kv_most is None else min(share, footprint.kv_most))
    return shares


class MemoryBalancer:
    """Adapts the drivers in memory to what there is."""

    def __init__(self, residency: Residency, loop: asyncio.AbstractEventLoop) -> None:
        self._residency = residency
        self._loop = loop
        self._changed: dict[tuple[Resident, str], float] = {}  # when last

    def grant(self, runtime: Resident) -> int | None:
        """Bytes of keys and values for a driver that is about to load; None leaves them to the driver.

        The driver takes half of what is free, which it may do while that is less than its share.
        """
        residents = [runtime, *(other for other in self._residency.residents() if other is not runtime)]
        share = allot(self._residency.budget, [other.footprint for other in residents])[0]
        wanted = runtime.spec.options.get("kv_memory")  # over which what the kernel says would go
        if isinstance(wanted, int):
            return None if wanted <= share else share
        return None if share >= self._residency.sample.memory_available // 2 else share

    def adapt(self) -> None:
        """Look whether anything has to change."""
        residency = self._residency
        residency.shed()
        residents = residency.residents()
        shares = allot(residency.budget, [runtime.footprint for runtime in residents])
        ease = self._ease(residents)
        cause = self._cause(residents)
        for runtime, share in zip(residents, shares, strict=True):
            if runtime.state.ready_at is not None:
                self._resize(runtime, share, cause)
                self._give_out(runtime, ease, cause)

    def _ease(self, residents: list[Resident]) -> float:
        """What part of the memory for keys and values is there, of what would be if the machine had no other use."""
        bodies = sum(runtime.footprint.body for runtime in residents)
        full, now = self._residency.full_budget - bodies, self._residency.budget - bodies
        return 1.0 if full <= 0 or now >= full else max(now, 0) / full

    def _cause(self, residents: list[Resident]) -> str:
        sample = self._residency.sample
        free = f"{show_size(sample.memory_available)} of {show_size(sample.memory_total)} are free"
        return f"{free}, drivers may take {show_size(self._residency.budget)}, models in memory: {len(residents)}"

    def _resize(self, runtime: Resident, share: int, cause: str) -> None:
        footprint = runtime.footprint
        before = footprint.kv_memory
        if not before or not footprint.shares:
            return
        share = min(share, int(before * GROWTH))
        if self._worth(runtime, "keys and values", before, share, DEADBAND * before):
            runtime.resize(share, cause)

    def _give_out(self, runtime: Resident, ease: float, cause: str) -> None:
        slots, before = runtime.spec.slots, runtime.rules.given
        now = min(max(round(ease * slots), 1), int(before * GROWTH))
        if self._worth(runtime, "slots", before, now, 0 if now == slots else DEADBAND * slots):
            runtime.rules.set_slot_limit(now, cause if now < slots else "")

    def _worth(self, runtime: Resident, what: str, before: int, now: int, deadband: float) -> bool:
        """Whether a change is: it is large enough, and does not take back too soon what memory had to give."""
        time, last = self._loop.time(), self._changed.get((runtime, what), 0.0)
        if abs(now - before) <= deadband or (now > before and time < last + GROW_INTERVAL):
            return False
        self._changed[runtime, what] = time
        return True
