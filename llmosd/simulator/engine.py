"""The engine of the simulated device: what a driver does with leased sequences, many steps at a time.

Spoken to by the slots in the words of the driver protocol, moved on by the simulation. All that it is told has effect
between steps, as in a driver. It makes one token a step for whoever is in the batch, and decides nothing.
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
    """`now` is the time to which it has come, `steps` counts those it did, `busy` the seconds they took.

    Between two calls of `advance` the same sequences are in the batch, so that many steps are one sum. The tokens of
    one that makes some are `made + steps - joined`. `fresh` are those that were admitted first since it was emptied.
    `later` is called with a time and a call that is read back from disk: `restored` is to be told then.
    """

    def __init__(self, device: DeviceModel, timeline: Timeline, later: Callable[[float, SimulatedCall], None]) -> None:
        self.now = 0.0
        self.steps = 0
        self.busy = 0.0
        self.calls: dict[int, SimulatedCall] = {}  # all that it holds
        self.decoding: dict[int, SimulatedCall] = {}
        self.memory = KVMemoryModel(device)
        self._device = device
        self._timeline = timeline
        self._later = later
        self.fresh: list[SimulatedCall] = []
        self._restoring: set[int] = set()
        self._reading: dict[int, SimulatedCall] = {}  # their prompts, the first to come first
        self._context = 0  # tokens that those who make tokens attend to

    # ---- what it is told

    def hold(self, call: SimulatedCall) -> None:
        """Know `call` from now on, before it is admitted."""
        self.calls[call.id] = call

    def obey(self, message: protocol.ToDriver) -> None:
        """Take a message of the slots."""
        match message:
            case protocol.Admit(sequence=number) | protocol.Renew(sequence=number):
                self._put_on(self.calls[number])
            case protocol.Revoke(sequence=number):
                self.take_off(self.calls[number])

    def forget(self, call: SimulatedCall) -> None:
        """It is over, or nobody wants it any more."""
        self.take_off(call)
        self.memory.free(call)
        del self.calls[call.id]
        self._fill()

    def take_off(self, call: SimulatedCall) -> None:
        """No steps for `call` until it is put on again. Its state stays."""
        if call.slot < 0:
            return
        if self.decoding.pop(call.id, None) is not None:
            call.made += self.steps - call.joined
            self._context -= call.prompt + call.made
        self._reading.pop(call.id, None)
        self._restoring.discard(call.id)
        self.memory.wants_no_more(call)
        self._timeline.off(call, self.now)

    def swapped(self, call: SimulatedCall) -> None:
        """`call`, which is on no slot, was written to disk."""
        self.memory.free(call)
        call.in_driver, call.away = False, True
        self._fill()

    def restored(self, call: SimulatedCall) -> None:
        """`call` was read back, if it is still wanted."""
        if call.id in self._restoring:
            self._restoring.discard(call.id)
            call.away = False
            self._join(call)

    # ---- steps

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do in a step."""
        return not (self.decoding or self._reading)

    def made(self, call: SimulatedCall) -> int:
        """Tokens of `call` so far."""
        return call.made + (self.steps - call.joined if call.id in self.decoding else 0)

    def advance(self, until: float, most: int) -> list[SimulatedCall]:
        """Do up to `most` steps, and return the calls that have made all of their tokens or have read their prompt.

        It does at least one step and none that would begin at `until` or later, and stops as soon as there is such a
        call.
        """
        reading = next(iter(self._reading.values()), None)
        if reading is None:
            self._run(self._count(most, 0, 0, until), 0, 0)
        else:
            room = self._device.room(len(self.decoding), self._context)
            whole = max(reading.unread - 1, 0) // room if room else 0  # steps that the first prompt fills alone
            if not whole:
                return self._read(room)
            count = self._count(min(most, whole), 1, room, until)
            self._run(count, 1, room)
            reading.unread -= count * room
        steps = self.steps
        return [call for call in self.decoding.values() if call.made + steps - call.joined >= call.tokens]

    def _count(self, most: int, more: int, read: int, until: float) -> int:
        """How many equal steps are to be done, with `more` sequences besides those that make tokens."""
        steps = self.steps
        count = min((call.tokens - call.made + call.joined - steps for call in self.decoding.values()), default=most)
        count = max(min(count, most), 1)
        room = until - self.now
        if count == 1 or self._seconds(count - 1, more, read) < room:
            return count
        # The last step begins before `until`: solve for it, then mend what rounding did.
        first = self._device.step_seconds(len(self.decoding) + more, read, self._context)
        growth = self._device.context * len(self.decoding) / 2
        if growth:
            half = (first - growth) / (2 * growth)
            count = math.ceil(math.sqrt(half * half + room / growth) - half)
        else:
            count = math.ceil(room / first)
        while self._seconds(count, more, read) < room:
            count += 1
        while count > 1 and self._seconds(count - 1, more, read) >= room:
            count -= 1
        return max(count, 1)

    def _seconds(self, count: int, more: int, read: int) -> float:
        """Seconds of so many equal steps; their contexts grow by a token for each that makes one."""
        decoding = len(self.decoding)
        first = self._device.step_seconds(decoding + more, read, self._context)
        return count * first + self._device.context * decoding * (count * (count - 1) // 2)

    def _run(self, count: int, more: int, read: int) -> None:
        self._pass(count, self._seconds(count, more, read))
        self._context += count * len(self.decoding)

    def _read(self, room: int) -> list[SimulatedCall]:
        """One step, in which at least one prompt is read to its end, and its first token is made."""
        decoding = len(self.decoding)
        left, taken = room or math.inf, 0
        sequences = decoding
        done: list[SimulatedCall] = []
        for call in self._reading.values():
            tokens = int(min(call.unread, left))
            if call.unread and not tokens:
                break
            sequences += 1
            taken += tokens
            left -= tokens
            call.unread -= tokens
            if not call.unread:
                done.append(call)
        seconds = self._device.step_seconds(sequences, taken, self._context)
        self._pass(1, seconds)
        self._context += decoding
        for call in done:
            del self._reading[call.id]
            call.made += 1
            self._decode(call)
            if call.first is None:
                call.first = self.now
        steps = self.steps
        ended = [call for call in self.decoding.values() if call.made + steps - call.joined >= call.tokens]
        return ended + [call for call in done if call.made < call.tokens]

    def _pass(self, count: int, seconds: float) -> None:
        self.steps += count
        self.now += seconds
        self.busy += seconds

    # ---- the batch

    def _put_on(self, call: SimulatedCall) -> None:
        if call.slot >= 0:
            return  # a renewal of one that runs
        self._timeline.on(call, self.now)
        if call.started is None:
            call.started = self.now
            self.fresh.append(call)
        if self.memory.take(call):
            self._join(call)

    def _fill(self) -> None:
        """Let those join for whom there is memory now."""
        for call in self.memory.served():
            self._join(call)

    def _join(self, call: SimulatedCall) -> None:
        if call.away:
            self._restoring.add(call.id)
            self._later(self.now + self._device.swap_seconds(call.prompt + call.made), call)
        elif call.unread or not call.made:
            self._reading[call.id] = call
        else:
            self._decode(call)

    def _decode(self, call: SimulatedCall) -> None:
        call.joined = self.steps
        self.decoding[call.id] = call
        self._context += call.prompt + call.made
