"""Swapping in the simulation: parked calls give up their KV memory when a call on a slot waits for memory.

The simulation's counterpart of `kernel.models.pager`; the pager's own function chooses the victims. As in the daemon, a
call is blocked while its KV is written, and the engine delays it while its KV is read back. It never touches a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from kernel.models.leases import SWAPPING, LeaseTable
from kernel.models.pager import FULL, Candidate, choose
from kernel.models.sequence import RUNNING, Sequence
from llmosd.simulator.call import SimulatedCall
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.engine import SimulatedEngine


class Paging:
    """`swaps` counts swap-outs. `schedule` takes a time and a call: at that time, call `swapped_out` with that call."""

    def __init__(
        self,
        device: DeviceModel,
        engine: SimulatedEngine,
        leases: LeaseTable,
        schedule: Callable[[float, SimulatedCall], None],
    ) -> None:
        self.swaps = 0
        self._device = device
        self._engine = engine
        self._leases = leases
        self._schedule = schedule
        self._swapping_out: dict[int, SimulatedCall] = {}

    def set_switch_cost(self, call: SimulatedCall) -> None:
        """Set the cost of preempting `call`, in tokens. It stays 0 unless memory is short."""
        memory = self._engine.memory
        if memory.size and memory.used > FULL * memory.size:
            tokens = call.prompt + call.tokens
            call.switch_cost = 2 * self._device.swap_seconds(tokens) / self._device.step_seconds(self._leases.count)

    def update(self) -> None:
        """If a call waits for memory and no call is being swapped out already, start to swap parked calls out."""
        waiting = self._engine.memory.waiting
        if not waiting or self._swapping_out:
            return
        first = next(iter(waiting.values()))
        need = self._engine.memory.used + first.kv_tokens - self._engine.memory.size
        parked = [call for call in self._engine.calls.values() if call.has_kv and call.state != RUNNING]
        chosen = cast("list[SimulatedCall]", choose(map(self._candidate, parked), need, self._rate, forced=True))
        if not chosen and self._engine.idle:  # no call can run: the least urgent call on a slot makes room
            running = [call for call in self._engine.calls.values() if call.has_kv]
            chosen = sorted(running, key=lambda call: (call.priority, -call.id))[:1]
        for call in chosen:
            self._swapping_out[call.id] = call
            self._leases.block(cast("Sequence", call), SWAPPING)
            if call.state == RUNNING:
                self._leases.parked(cast("Sequence", call))  # the engine parked it immediately
            self._schedule(self._engine.now + self._device.swap_seconds(call.prompt + call.made), call)

    def swapped_out(self, call: SimulatedCall) -> None:
        """The KV of `call` is on disk: free its memory, and let the call queue again."""
        if self._swapping_out.pop(call.id, None) is None or call.finished:
            return
        self.swaps += 1
        self._engine.swapped_out(call)
        self._leases.free(cast("Sequence", call))
        self._leases.unblock(cast("Sequence", call), SWAPPING)

    def remove(self, call: SimulatedCall) -> None:
        """`call` has ended: it is no longer being swapped out."""
        self._swapping_out.pop(call.id, None)

    def shortage(self) -> str:
        """Why the waiting calls cannot run."""
        memory = self._engine.memory
        largest = max((call.kv_tokens for call in memory.waiting.values()), default=0)
        return f"a call needs KV memory for {largest} tokens, but the device has {memory.size}; raise its `memory`"

    @property
    def _rate(self) -> float:
        """The swap rate in tokens per second. `choose` gets all sizes in tokens here, not in bytes."""
        return 1 / self._device.swap_token if self._device.swap_token else 1e12

    def _candidate(self, call: SimulatedCall) -> Candidate:
        wait = max(self._engine.now - call.since, self._device.step)
        return Candidate(cast("Any", call), call.kv_tokens, wait)
