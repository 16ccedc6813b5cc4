"""The KV memory of the simulated device: reserved for whole sequences, first come, first served.

Used by the engine. As in the drivers, a call that finds too little memory holds its slot and waits, and all later calls
wait behind it. It never swaps anything out.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmosd.simulator.call import SimulatedCall
from llmosd.simulator.device import DeviceModel


class KVMemoryModel:
    """`used` of `size` tokens are reserved (size 0: no bound). The calls in `waiting` have a slot but no memory."""

    def __init__(self, device: DeviceModel) -> None:
        self.size = device.memory
        self.used = 0
        self.waiting: dict[int, SimulatedCall] = {}

    def try_reserve(self, call: SimulatedCall) -> bool:
        """Reserve memory for `call`; True if it has memory now. If there is too little, the call waits for it."""
        if call.has_kv:
            return True
        if self.waiting or not self._fits(call):
            self.waiting[call.id] = call
            return False
        self._reserve(call)
        return True

    def stop_waiting(self, call: SimulatedCall) -> None:
        """`call` lost its slot, so it no longer waits for memory. Memory that it has already stays reserved."""
        self.waiting.pop(call.id, None)

    def free(self, call: SimulatedCall) -> None:
        """Free the memory of `call`."""
        if call.has_kv:
            call.has_kv = False
            self.used -= call.kv_tokens if self.size else 0

    def reserve_for_waiting(self) -> Iterator[SimulatedCall]:
        """Reserve memory for waiting calls in order of arrival until one does not fit; yields the calls that got it."""
        while self.waiting:
            first = next(iter(self.waiting.values()))
            if not self._fits(first):
                return
            del self.waiting[first.id]
            self._reserve(first)
            yield first

    def _fits(self, call: SimulatedCall) -> bool:
        return not self.size or self.used + call.kv_tokens <= self.size

    def _reserve(self, call: SimulatedCall) -> None:
        call.has_kv = True
        self.used += call.kv_tokens if self.size else 0
