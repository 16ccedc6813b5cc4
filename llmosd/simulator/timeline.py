"""Who was on which slot when, and how many waited: what the plots draw.

Written by the engine and the simulation while they run, if it is asked for. It keeps times in seconds.
"""

from __future__ import annotations

from heapq import heappop, heappush

import msgspec

from llmosd.simulator.call import SimulatedCall


class Interval(msgspec.Struct, frozen=True, array_like=True):
    """`call` was on `slot` from `start` to `end`."""

    slot: int
    call: int
    start: float
    end: float


class TimelineSample(msgspec.Struct, frozen=True, array_like=True):
    """From `time` on so many calls waited, and so many were on a slot."""

    time: float
    waiting: int
    running: int


class Timeline:
    """Which call was on which slot, and when.

    Slots are numbered; a call gets the lowest number that is free. `intervals` and `samples` stay empty unless `kept`.
    """

    def __init__(self, kept: bool = False) -> None:
        self.intervals: list[Interval] = []
        self.samples: list[TimelineSample] = []
        self._kept = kept
        self._free: list[int] = []
        self._next = 0
        self._since: dict[int, float] = {}

    def on(self, call: SimulatedCall, now: float) -> None:
        """`call` got a slot."""
        if self._free:
            call.slot = heappop(self._free)
        else:
            call.slot, self._next = self._next, self._next + 1
        if self._kept:
            self._since[call.id] = now

    def off(self, call: SimulatedCall, now: float) -> None:
        """`call` has its slot no more."""
        if self._kept:
            start = self._since.pop(call.id)
            if now > start:
                self.intervals.append(Interval(call.slot, call.id, start, now))
        heappush(self._free, call.slot)
        call.slot = -1

    def sample(self, now: float, waiting: int, running: int) -> None:
        """So many wait and run from now on."""
        if not self._kept:
            return
        samples = self.samples
        if samples and samples[-1].time == now:
            samples.pop()
        if not samples or (samples[-1].waiting, samples[-1].running) != (waiting, running):
            samples.append(TimelineSample(now, waiting, running))
