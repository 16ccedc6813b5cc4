"""Swapping in the simulation: parked calls give up their memory where a call on a slot waits for some.

The simulation's counterpart of `kernel.models.pager`, whose choice of whom to swap it takes. It holds calls off their
slots while they are written, as the daemon does; reading back holds them off, too.
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
    """`swaps` counts those written. `later` is called with a time and a call: `done` is to be told then."""

    def __init__(
        self,
        device: DeviceModel,
        engine: SimulatedEngine,
        leases: LeaseTable,
        later: Callable[[float, SimulatedCall], None],
    ) -> None:
        self.swaps = 0
        self._device = device
        self._engine = engine
        self._leases = leases
        self._later = later
        self._leaving: dict[int, SimulatedCall] = {}

    def price(self, call: SimulatedCall) -> None:
        """Tell the policy what it costs to preempt `call`: nothing while memory is not short."""
        memory = self._engine.memory
        if memory.size and memory.used > FULL * memory.size:
            tokens = call.prompt + call.tokens
            call.switch_cost = 2 * self._device.swap_seconds(tokens) / self._device.step_seconds(self._leases.count)

    def update(self) -> None:
        """See whether memory is waited for, and have what is in the way written out."""
        waiting = self._engine.memory.waiting
        if not waiting or self._leaving:
            return
        first = next(iter(waiting.values()))
        need = self._engine.memory.used + first.reserve - self._engine.memory.size
        parked = [call for call in self._engine.calls.values() if call.has_kv and call.state != RUNNING]
        chosen = cast("list[SimulatedCall]", choose(map(self._candidate, parked), need, self._rate, forced=True))
        if not chosen and self._engine.idle:  # nothing moves: the last to come of those that run makes room
            running = [call for call in self._engine.calls.values() if call.has_kv]
            chosen = sorted(running, key=lambda call: (call.priority, -call.id))[:1]
        for call in chosen:
            self._leaving[call.id] = call
            self._leases.block(cast("Sequence", call), SWAPPING)
            if call.state == RUNNING:
                self._leases.parked(cast("Sequence", call))  # the engine has taken it off at once
            self._later(self._engine.now + self._device.swap_seconds(call.prompt + call.made), call)

    def done(self, call: SimulatedCall) -> None:
        """`call` is written."""
        if self._leaving.pop(call.id, None) is None or call.finished:
            return
        self.swaps += 1
        self._engine.swapped(call)
        self._leases.free(cast("Sequence", call))
        self._leases.unblock(cast("Sequence", call), SWAPPING)

    def forget(self, call: SimulatedCall) -> None:
        """It is over."""
        self._leaving.pop(call.id, None)

    def shortage(self) -> str:
        """Why calls cannot run."""
        memory = self._engine.memory
        largest = max((call.reserve for call in memory.waiting.values()), default=0)
        return f"one needs memory for {largest} tokens, and the device has {memory.size}"

    @property
    def _rate(self) -> float:
        """Tokens a second that are swapped; sizes are in tokens here."""
        return 1 / self._device.swap_token if self._device.swap_token else 1e12

    def _candidate(self, call: SimulatedCall) -> Candidate:
        wait = max(self._engine.now - call.since, self._device.step)
        return Candidate(cast("Any", call), call.reserve, wait)
