"""The timeline of a run for the plots: the calls on each slot, and how many calls waited, over time.

Written by the engine and the simulation while they run, if the caller asked for a timeline. All times are in seconds.
It decides nothing.
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
    """From `time` to the next sample, `waiting` calls waited for a slot and `running` calls had one."""

    time: float
    waiting: int
    running: int


class Timeline:
    """Numbers the slots: a call gets the lowest number that is free.

    `intervals` and `samples` stay empty unless `enabled`.
    """

    def __init__(self, enabled: bool = False) -> None:
        self.intervals: list[Interval] = []
        self.samples: list[TimelineSample] = []
        self._enabled = enabled
        self._free: list[int] = []
        self._next = 0
        self._started: dict[int, float] = {}

    def slot_taken(self, call: SimulatedCall, now: float) -> None:
        """`call` got a slot."""
        if self._free:
            call.slot = heappop(self._free)
        else:
            call.slot, self._next = self._next, self._next + 1
        if self._enabled:
            self._started[call.id] = now

    def slot_freed(self, call: SimulatedCall, now: float) -> None:
        """`call` lost its slot."""
        if self._enabled:
            start = self._started.pop(call.id)
            if now > start:
                self.intervals.append(Interval(call.slot, call.id, start, now))
        heappush(self._free, call.slot)
        call.slot = -1

    def sample(self, now: float, waiting: int, running: int) -> None:
        """Record how many calls wait and run from `now` on. Unchanged numbers make no new sample."""
        if not self._enabled:
            return
        samples = self.samples
        if samples and samples[-1].time == now:
            samples.pop()
        if not samples or (samples[-1].waiting, samples[-1].running) != (waiting, running):
            samples.append(TimelineSample(now, waiting, running))
