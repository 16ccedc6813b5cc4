"""Frees objects that refer to each other in cycles and that nothing else refers to, when they may take much memory.

The kernel makes the collector; the daemon starts it. Python's own counts objects, so it ignores a few that take
gigabytes. This one looks at the memory of the daemon a few times a second, between the steps of agents: a collection
delays the loop, but is charged to no agent. It never takes more than a small share of the time.

Objects that survive are set aside (`gc.freeze`) if it takes long to visit them. Later collections do not visit them
until so many of their processes have ended, or so much memory has been added, that a part of them may be garbage.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

import structlog

from kernel.core.process import Process
from kernel.core.process_table import ProcessTable
from kernel.lib.machine import own_memory, release_free_memory
from kernel.programs.origin import without_origin

LOOK_SECONDS = 0.25  # between two looks at the memory
SHARE = 0.01  # of the time that collections of recent objects may take, and as much for collections of everything
URGENT_SHARE = 0.1  # of the time, while the memory that may be garbage is at least `URGENT` times as much as it need be
URGENT = 4
LEAST_RECENT = 32 * 1024 * 1024  # bytes of growth since the last collection that may be garbage
LEAST_EVERYTHING = 64 * 1024 * 1024  # bytes that may be garbage before everything is visited
DOUBTFUL = 4  # times as many, while no process has ended whose objects were set aside
LONG = 0.02  # seconds: recent objects that take longer to visit are set aside

# See `gc.set_threshold`. A waiting agent consists of some 15 objects and no cycle. With the default thresholds, Python
# would visit the objects of all agents every few dozen spawns. With these, it visits each new object twice, at most
# half a million objects at once, and never everything.
THRESHOLDS = (10_000, 50, 1_000_000)

log = structlog.get_logger("kernel.garbage")


class Pace:
    """When the next collection of one kind may begin. `count` counts those that were made."""

    def __init__(self) -> None:
        self.count = 0
        self._ended = 0.0  # when the last one ended
        self._cost = 0.0  # seconds that the next one is expected to take

    def allows(self, now: float, garbage: int, need: int) -> bool:
        """Whether one may begin. `garbage` bytes may be garbage; `need` bytes are worth a collection."""
        if garbage < need:
            return False
        return now - self._ended >= self._cost / (URGENT_SHARE if garbage >= URGENT * need else SHARE)

    def ended(self, now: float, cost: float) -> None:
        self.count, self._ended, self._cost = self.count + 1, now, cost


class Garbage:
    """Collects garbage: recent objects, those that were not set aside, more often than everything."""

    def __init__(
        self, table: ProcessTable, loop: asyncio.AbstractEventLoop, memory: Callable[[], int] = own_memory
    ) -> None:
        self.recent, self.everything = Pace(), Pace()
        self._table = table
        self._loop = loop
        self._memory = memory
        self._timer: asyncio.TimerHandle | None = None
        self._floor = 0  # bytes at the start of the daemon
        self._before = 0  # bytes after the last collection of either kind, or fewer if the memory has shrunk since
        # The last collection of everything: when it was, the memory then, the processes then, those that ended since.
        self._then = 0.0
        self._memory_then = 0
        self._processes_then = 0
        self._ended = 0
        self._set_aside = 0.0  # when objects were last set aside
        self._owners_ended = False  # whether a process has ended since that had started before
        self._ended_lately = 0  # processes since the last collection of either kind

    def start(self) -> None:
        """Collect from now on. The present objects live as long as the daemon."""
        gc.collect()
        self._put_aside()
        gc.set_threshold(*THRESHOLDS)
        self._floor = self._before = self._memory()
        self._collected_everything(self._floor)
        self._look_later()

    def stop(self) -> None:
        """Collect no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def process_ended(self, process: Process) -> None:
        """Note that objects that were set aside may be garbage now."""
        self._ended_lately += 1
        if process.started < self._set_aside:
            self._owners_ended = True
            if process.started < self._then:
                self._ended += 1

    # ---- inside

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look, context=without_origin())

    def _look(self) -> None:
        self._look_later()
        memory, now = self._memory(), self._loop.time()
        self._note(memory)
        live = self._memory_then - self._floor
        # Once most processes have ended, not only the latest growth may be garbage.
        base = self._before if self._ended_lately < len(self._table.alive) else min(self._before, self._memory_then)
        if self.recent.allows(now, memory - base, max(LEAST_RECENT, live // 4)):
            memory = self._collect_recent(memory)
        need = max(LEAST_EVERYTHING, live // 2) * (1 if self._owners_ended else DOUBTFUL)
        if self.everything.allows(now, memory - self._expected, need):
            self._collect_everything(memory)

    @property
    def _expected(self) -> int:
        """The memory if the processes that have ended since had left nothing, and no memory had been added."""
        live = self._memory_then - self._floor
        return self._floor + live - live * self._ended // max(self._processes_then, 1)

    def _note(self, memory: int) -> None:
        """Note that the memory has shrunk, so that its next growth counts from here."""
        self._before = min(self._before, memory)
        if memory < self._expected:
            self._memory_then = max(memory, self._floor)
            self._processes_then -= self._ended
            self._ended = 0

    def _collect_recent(self, before: int) -> int:
        """Collect the objects that were not set aside. Returns the memory after that."""
        began = time.thread_time()
        found = gc.collect()
        if is_long := time.thread_time() - began > LONG:
            self._put_aside()
        release_free_memory()
        seconds = time.thread_time() - began
        self.recent.ended(self._loop.time(), LONG if is_long else seconds)
        self._before, self._ended_lately = self._memory(), 0
        memory = self._before
        log.debug("collected recent garbage", objects=found, seconds=round(seconds, 4), freed=before - memory)
        return memory

    def _collect_everything(self, before: int) -> None:
        """Collect all objects, and set the survivors aside."""
        began = time.thread_time()
        gc.unfreeze()
        found = gc.collect()
        self._put_aside()
        release_free_memory()
        seconds = time.thread_time() - began
        self.everything.ended(self._loop.time(), seconds)
        self._before, self._ended_lately = self._memory(), 0
        memory = self._before
        self._collected_everything(memory)
        log.debug("collected all garbage", objects=found, seconds=round(seconds, 4), freed=before - memory)

    def _collected_everything(self, memory: int) -> None:
        self._then = self._set_aside
        self._memory_then = max(memory, self._floor)
        self._processes_then, self._ended = len(self._table.alive), 0
        self._owners_ended = False

    def _put_aside(self) -> None:
        gc.freeze()
        self._set_aside = time.monotonic()
