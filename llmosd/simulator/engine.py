"""The engine of the simulated device: it runs leased sequences as a driver does, but many steps at a time.

The lease table sends it messages of the driver protocol, and the simulation advances it. As in a driver, messages take
effect between steps. It decides nothing: every call in the batch makes one token per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from kernel.drivers import protocol
from llmosd.simulator.call import SimulatedCall
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.memory import KVMemoryModel
from llmosd.simulator.timeline import Timeline


class SimulatedEngine:
    """`now` is the time up to which it has run, `steps` the number of steps so far, `busy` the seconds that they took.

    The batch does not change within one call of `advance`, so the times of many steps are added up at a time. A call in
    the batch has made `made + steps - joined_step` tokens. `newly_started` lists the calls that got their first slot
    since the simulation last cleared the list. `schedule` takes a time and a call: the simulation must call
    `swapped_in` with that call at that time.
    """

    def __init__(
        self, device: DeviceModel, timeline: Timeline, schedule: Callable[[float, SimulatedCall], None]
    ) -> None:
        self.now = 0.0
        self.steps = 0
        self.busy = 0.0
        self.calls: dict[int, SimulatedCall] = {}  # all calls that have not ended
        self.decoding: dict[int, SimulatedCall] = {}
        self.memory = KVMemoryModel(device)
        self._device = device
        self._timeline = timeline
        self._schedule = schedule
        self.newly_started: list[SimulatedCall] = []
        self._swapping_in: set[int] = set()
        self._prefilling: dict[int, SimulatedCall] = {}  # in order of arrival
        self._context = 0  # tokens that all decoding calls together attend to

    # ---- messages

    def add(self, call: SimulatedCall) -> None:
        """Register `call`, before it is admitted."""
        self.calls[call.id] = call

    def handle(self, message: protocol.ToDriver) -> None:
        """Handle a message of the lease table."""
        match message:
            case protocol.Admit(sequence=number) | protocol.Renew(sequence=number):
                self._start(self.calls[number])
            case protocol.Revoke(sequence=number):
                self.park(self.calls[number])

    def remove(self, call: SimulatedCall) -> None:
        """`call` has ended or was cancelled: free its slot and its memory."""
        self.park(call)
        self.memory.free(call)
        del self.calls[call.id]
        self._start_waiting()

    def park(self, call: SimulatedCall) -> None:
        """Take `call` off its slot. Its KV stays in memory."""
        if call.slot < 0:
            return
        if self.decoding.pop(call.id, None) is not None:
            call.made += self.steps - call.joined_step
            self._context -= call.prompt + call.made
        self._prefilling.pop(call.id, None)
        self._swapping_in.discard(call.id)
        self.memory.stop_waiting(call)
        self._timeline.slot_freed(call, self.now)

    def swapped_out(self, call: SimulatedCall) -> None:
        """The KV of `call`, which has no slot, was written to disk."""
        self.memory.free(call)
        call.in_driver, call.swapped_out = False, True
        self._start_waiting()

    def swapped_in(self, call: SimulatedCall) -> None:
        """The KV of `call` was read back. Does nothing if the call has lost its slot in the meantime."""
        if call.id in self._swapping_in:
            self._swapping_in.discard(call.id)
            call.swapped_out = False
            self._join_batch(call)

    # ---- steps

    @property
    def idle(self) -> bool:
        """Whether the batch is empty."""
        return not (self.decoding or self._prefilling)

    def tokens_made(self, call: SimulatedCall) -> int:
        """Tokens that `call` has made so far."""
        return call.made + (self.steps - call.joined_step if call.id in self.decoding else 0)

    def advance(self, until: float, most: int) -> list[SimulatedCall]:
        """Do up to `most` steps. Returns the calls that have made all of their tokens or have read all of their prompt.

        It does at least one step, starts no step at `until` or later, and stops as soon as there is a call to return.
        """
        first = next(iter(self._prefilling.values()), None)
        if first is None:
            self._run_steps(self._count_steps(most, 0, 0, until), 0, 0)
        else:
            budget = self._device.prefill_budget(len(self.decoding), self._context)
            full = max(first.unread - 1, 0) // budget if budget else 0  # steps in which only the first prompt is read
            if not full:
                return self._run_last_prefill_step(budget)
            count = self._count_steps(min(most, full), 1, budget, until)
            self._run_steps(count, 1, budget)
            first.unread -= count * budget
        steps = self.steps
        return [call for call in self.decoding.values() if call.made + steps - call.joined_step >= call.tokens]

    def _count_steps(self, most: int, prefilling: int, read: int, until: float) -> int:
        """How many equal steps to do. Each reads `read` tokens of `prefilling` sequences beside the decoding ones."""
        steps = self.steps
        count = min(
            (call.tokens - call.made + call.joined_step - steps for call in self.decoding.values()), default=most
        )
        count = max(min(count, most), 1)
        time_left = until - self.now
        if count == 1 or self._seconds(count - 1, prefilling, read) < time_left:
            return count
        # The last step begins before `until`: solve for the count, then correct for rounding.
        first = self._device.step_seconds(len(self.decoding) + prefilling, read, self._context)
        growth = self._device.context * len(self.decoding) / 2
        if growth:
            half = (first - growth) / (2 * growth)
            count = math.ceil(math.sqrt(half * half + time_left / growth) - half)
        else:
            count = math.ceil(time_left / first)
        while self._seconds(count, prefilling, read) < time_left:
            count += 1
        while count > 1 and self._seconds(count - 1, prefilling, read) >= time_left:
            count -= 1
        return max(count, 1)

    def _seconds(self, count: int, prefilling: int, read: int) -> float:
        """Seconds of `count` equal steps. Each step adds a token to the context of each decoding call."""
        decoding = len(self.decoding)
        first = self._device.step_seconds(decoding + prefilling, read, self._context)
        return count * first + self._device.context * decoding * (count * (count - 1) // 2)

    def _run_steps(self, count: int, prefilling: int, read: int) -> None:
        self._add_time(count, self._seconds(count, prefilling, read))
        self._context += count * len(self.decoding)

    def _run_last_prefill_step(self, budget: int) -> list[SimulatedCall]:
        """Do one step in which at least one prompt is read to its end, and the call makes its first token."""
        decoding = len(self.decoding)
        left, read = budget or math.inf, 0
        sequences = decoding
        done: list[SimulatedCall] = []
        for call in self._prefilling.values():
            tokens = int(min(call.unread, left))
            if call.unread and not tokens:
                break
            sequences += 1
            read += tokens
            left -= tokens
            call.unread -= tokens
            if not call.unread:
                done.append(call)
        seconds = self._device.step_seconds(sequences, read, self._context)
        self._add_time(1, seconds)
        self._context += decoding
        for call in done:
            del self._prefilling[call.id]
            call.made += 1
            self._start_decoding(call)
            if call.first is None:
                call.first = self.now
        steps = self.steps
        ended = [call for call in self.decoding.values() if call.made + steps - call.joined_step >= call.tokens]
        return ended + [call for call in done if call.made < call.tokens]

    def _add_time(self, count: int, seconds: float) -> None:
        self.steps += count
        self.now += seconds
        self.busy += seconds

    # ---- the batch

    def _start(self, call: SimulatedCall) -> None:
        if call.slot >= 0:
            return  # the message renews the lease of a running call
        self._timeline.slot_taken(call, self.now)
        if call.started is None:
            call.started = self.now
            self.newly_started.append(call)
        if self.memory.try_reserve(call):
            self._join_batch(call)

    def _start_waiting(self) -> None:
        """Let the calls that waited for memory join the batch, as far as there is memory now."""
        for call in self.memory.reserve_for_waiting():
            self._join_batch(call)

    def _join_batch(self, call: SimulatedCall) -> None:
        if call.swapped_out:
            self._swapping_in.add(call.id)
            self._schedule(self.now + self._device.swap_seconds(call.prompt + call.made), call)
        elif call.unread or not call.made:
            self._prefilling[call.id] = call
        else:
            self._start_decoding(call)

    def _start_decoding(self, call: SimulatedCall) -> None:
        call.joined_step = self.steps
        self.decoding[call.id] = call
        self._context += call.prompt + call.made
