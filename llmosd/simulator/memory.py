"""KVMemoryModel for keys and values of the simulated device: first come, first served, whole sequences.

Asked by the engine. A call that finds no room waits on its slot, and all who come after it, as in the drivers.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmosd.simulator.call import SimulatedCall
from llmosd.simulator.device import DeviceModel


class KVMemoryModel:
    """`used` of `size` tokens (0: without bound) are given out; `waiting` have a slot and no memory."""

    def __init__(self, device: DeviceModel) -> None:
        self.size = device.memory
        self.used = 0
        self.waiting: dict[int, SimulatedCall] = {}

    def take(self, call: SimulatedCall) -> bool:
        """Room for `call`, unless there is none: then it waits for some."""
        if call.has_kv:
            return True
        if self.waiting or not self._fits(call):
            self.waiting[call.id] = call
            return False
        self._give(call)
        return True

    def wants_no_more(self, call: SimulatedCall) -> None:
        """It is off its slot: it waits for no room, and keeps what it has."""
        self.waiting.pop(call.id, None)

    def free(self, call: SimulatedCall) -> None:
        """What it has is free again."""
        if call.has_kv:
            call.has_kv = False
            self.used -= call.reserve if self.size else 0

    def served(self) -> Iterator[SimulatedCall]:
        """Those that waited and have room now, in the order of coming."""
        while self.waiting:
            first = next(iter(self.waiting.values()))
            if not self._fits(first):
                return
            del self.waiting[first.id]
            self._give(first)
            yield first

    def _fits(self, call: SimulatedCall) -> bool:
        return not self.size or self.used + call.reserve <= self.size

    def _give(self, call: SimulatedCall) -> None:
        call.has_kv = True
        self.used += call.reserve if self.size else 0
