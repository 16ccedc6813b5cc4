"""The memory balancer: sets the KV memory of each driver, and how many of its slots may be in use.

Called when a model was loaded, and with every sample of the machine. When memory is short, it shrinks both immediately;
when memory is free, it grows them in steps. The log and the listing of slots show the cause. It loads and unloads no
model: the residency does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kernel.lib.units import show_size
from kernel.models.footprint import Footprint
from kernel.models.residency import Residency
from kernel.models.resident import Resident

DEADBAND = 1 / 8  # smaller relative changes are not worth a message
GROWTH = 2.0  # the largest factor of one step of growth
GROW_INTERVAL = 5.0  # seconds between two steps of growth
MIN_KV = 1 << 20  # bytes of KV memory that each driver gets at least


def allot(budget: int, footprints: Sequence[Footprint]) -> list[int]:
    """Bytes of KV memory for each driver: its `kv_minimum`, and an equal part of the rest of `budget`.

    If the minimums of all drivers together exceed `budget`, the drivers give up the excess in proportion to what they
    can spare, and each retains its `kv_floor`. So a driver may get less KV memory than it uses. No driver gets more
    than its `kv_limit`.
    """
    sharers = sum(1 for footprint in footprints if footprint.uses_shared_memory)
    rest = budget - sum(footprint.minimum for footprint in footprints)
    spare = sum(footprint.spare_kv for footprint in footprints)
    shares = []
    for footprint in footprints:
        part = rest // max(sharers, 1) if rest >= 0 else rest * footprint.spare_kv // max(spare, 1)
        share = max(footprint.kv_minimum + part, footprint.kv_floor, MIN_KV)
        shares.append(share if footprint.kv_limit is None else min(share, footprint.kv_limit))
    return shares


class MemoryBalancer:
    """Adjusts the KV memory and the slot limits of the running drivers to the budget for all drivers."""

    def __init__(self, residency: Residency, loop: asyncio.AbstractEventLoop) -> None:
        self._residency = residency
        self._loop = loop
        self._last_change: dict[tuple[Resident, str], float] = {}  # time of the last change, by model and quantity

    def kv_for_load(self, runtime: Resident) -> int | None:
        """Bytes of KV memory for a driver that is about to load; None lets the driver choose.

        A driver that chooses takes half of the free memory, or the `kv_memory` in its options. It may choose if what
        it would take is at most the share that `allot` gives it.
        """
        residents = [runtime, *(other for other in self._residency.residents() if other is not runtime)]
        share = allot(self._residency.budget, [other.footprint for other in residents])[0]
        wanted = runtime.spec.options.get("kv_memory")  # an explicit number in `Load` would override it
        if isinstance(wanted, int):
            return None if wanted <= share else share
        return None if share >= self._residency.sample.memory_available // 2 else share

    def adapt(self) -> None:
        """Have the residency unload models if memory is short; set the KV memory and slot limit of each ready model."""
        residency = self._residency
        residency.unload_excess()
        residents = residency.residents()
        present = set(residents)  # a model that is gone may be forgotten, and is not held here
        self._last_change = {key: time for key, time in self._last_change.items() if key[0] in present}
        tolerated = -residency.room if 0 < -residency.room <= residency.tolerance else 0
        shares = allot(residency.budget + tolerated, [runtime.footprint for runtime in residents])
        part = self._available_part(residents)
        cause = self._cause(residents)
        for runtime, share in zip(residents, shares, strict=True):
            if runtime.state.ready_at is not None:
                self._adapt_kv(runtime, share, cause)
                self._adapt_slot_limit(runtime, part, cause)

    def _available_part(self, residents: list[Resident]) -> float:
        """The part of all KV memory that is available now: less than 1 if the machine is short of memory."""
        bodies = sum(runtime.footprint.without_kv for runtime in residents)
        full, now = self._residency.full_budget - bodies, self._residency.budget - bodies
        return 1.0 if full <= 0 or now >= full else max(now, 0) / full

    def _cause(self, residents: list[Resident]) -> str:
        sample = self._residency.sample
        free = f"{show_size(sample.memory_available)} of {show_size(sample.memory_total)} are free"
        return f"{free}, drivers may take {show_size(self._residency.budget)}, models in memory: {len(residents)}"

    def _adapt_kv(self, runtime: Resident, share: int, cause: str) -> None:
        footprint = runtime.footprint
        before = footprint.kv_memory
        if not before or not footprint.uses_shared_memory:
            return
        share = min(share, int(before * GROWTH))
        if self._accept_change(runtime, "kv", before, share, DEADBAND * before):
            runtime.resize(share, cause)

    def _adapt_slot_limit(self, runtime: Resident, part: float, cause: str) -> None:
        slots, before = runtime.spec.slots, runtime.rules.slot_limit
        now = min(max(round(part * slots), 1), int(before * GROWTH))
        if self._accept_change(runtime, "slots", before, now, 0 if now == slots else DEADBAND * slots):
            runtime.rules.set_slot_limit(now, cause if now < slots else "")

    def _accept_change(self, runtime: Resident, quantity: str, before: int, now: int, deadband: float) -> bool:
        """Whether to make a change; if so, note its time. Rejects small changes, and growth too soon after a change."""
        time, last = self._loop.time(), self._last_change.get((runtime, quantity), 0.0)
        if abs(now - before) <= deadband or (now > before and time < last + GROW_INTERVAL):
            return False
        self._last_change[runtime, quantity] = time
        return True
