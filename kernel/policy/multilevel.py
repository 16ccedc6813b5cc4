"""The base of policies that favour jobs with little attained service: feedback levels, with promotion of starved jobs.

Each level is twice as wide as the level above it, as in multi-level feedback queues since Corbato's CTSS (1962). Within
a level, jobs run in order of arrival, each until it leaves the level. It never rotates the jobs of one level, since
alternating between equal jobs only costs switches.
"""

from __future__ import annotations

import heapq
import math
from abc import abstractmethod

from kernel.policy.preemptive import PreemptivePolicy
from kernel.policy.queue_entry import SLACK, Key, QueueEntry

LEVELS = 16  # a job never leaves the last level
STARVED = -1  # the level of a job that has waited too long
MAX_CHECKS = 32  # the most jobs that one search for a starved job examines


class MultilevelPolicy(PreemptivePolicy):
    """Level n begins at `quantum` x (2^n - 1) tokens and is `quantum` x 2^n wide. Subclasses define `_attained`.

    A job is starved when it has waited `starvation` times as long as its attained service took. A starved job goes
    before all others; several run in the order in which they were found. It keeps its slot for the width of its own
    level. So its wait ends, at the latest, when the jobs that starved before it have used their grants. With
    `starvation` 0 no job counts as starved. Waiting is measured in virtual time, that is, in tokens that a job would
    have made had it run, so that no job starves because the speed has changed.
    """

    def __init__(self, quantum: int, starvation: float) -> None:
        super().__init__()
        self._width = quantum
        self._starvation = starvation
        self._virtual = 0.0  # virtual time: tokens that a job which always ran would have made
        self._virtual_at = 0.0  # the time for which `_virtual` was computed
        self._starving: list[tuple[float, int, QueueEntry]] = []  # a heap of waiting jobs, by when they starve

    @abstractmethod
    def _attained(self, entry: QueueEntry) -> float:
        """The attained service, in tokens. It never decreases."""

    def _level(self, attained: float) -> int:
        return min(int(attained / self._width + 1).bit_length() - 1, LEVELS - 1)

    def _key(self, entry: QueueEntry, now: float) -> Key:
        entry.level = self._level(self._attained(entry))
        return (entry.level, entry.job.id)

    def _quantum(self, entry: QueueEntry) -> int:
        attained = self._attained(entry)
        level = self._level(attained)
        width = self._width << level
        if entry.level == STARVED or level == LEVELS - 1:
            return width
        return max(math.ceil(self._width * ((2 << level) - 1) - attained), 1)

    def _rule(self, entry: QueueEntry, now: float) -> str:
        if entry.level == STARVED:
            return "runs this call before all others, because it has starved"
        levels = [one.level for one in self._running.values()]
        others = f"; on the slots, the highest is {max(levels)}" if levels else ""
        starves = ""
        if self._starvation and self._token_seconds:
            virtual = self._virtual + max(now - self._virtual_at, 0) / self._token_seconds
            left = max(self._starves_at(entry) - virtual, 0) * self._token_seconds
            starves = f", and runs a call first that has waited for too long, this one in {left:.1f} s"
        return f"prefers calls with little service, in levels: this one is at level {entry.level}{others}{starves}"

    def _yields_to(self, waiting: QueueEntry, running: QueueEntry) -> bool:
        return running.job.preemptible and waiting.level <= running.level < LEVELS - 1

    def _beats(self, first: QueueEntry, running: QueueEntry) -> bool:
        return first.level < running.level or (running.job.id in self._needs_grant and first.key < running.key)

    def _prepare(self, now: float) -> None:
        self._advance(now)
        for entry in self._needs_grant.values():
            self._rekey(entry, now)

    def _first(self, now: float) -> QueueEntry | None:
        if self._starvation and (starved := self._starved()) is not None:
            if starved.level != STARVED:
                starved.level, starved.key = STARVED, (STARVED, self._ticket())
            return starved
        while (first := self._line.first()) is not None:
            if self._level(self._attained(first)) == first.level:
                return first
            self._line.remove(first)  # its group has received more service since the job was filed
            first.key = self._key(first, now)
            self._line.push(first, first.key)
        return None

    # ---- starvation

    def _advance(self, now: float) -> None:
        """Advance the virtual time to `now`."""
        if now > self._virtual_at:
            if self._token_seconds:
                self._virtual += (now - self._virtual_at) / self._token_seconds
            self._virtual_at = now

    def _starved(self) -> QueueEntry | None:
        """The starved job that has been starved for longest, if any waiting job is starved."""
        heap = self._starving
        checks = MAX_CHECKS
        while heap and heap[0][0] < self._virtual and checks:
            _, serial, entry = heap[0]
            if entry.starvation_serial != serial:
                heapq.heappop(heap)
                continue
            if (due := self._starves_at(entry)) < self._virtual:
                return entry
            heapq.heappop(heap)  # its group has received more service, so the job starves later
            self._watch(entry, due)
            checks -= 1
        return None

    def _starves_at(self, entry: QueueEntry) -> float:
        """The virtual time at which a waiting job becomes starved."""
        return entry.waits_from + self._starvation * max(self._attained(entry), self._width)

    def _watch(self, entry: QueueEntry, due: float) -> None:
        """Put `entry` into the starvation heap, to be examined at the virtual time `due`."""
        entry.starvation_serial = self._ticket()
        heapq.heappush(self._starving, (due, entry.starvation_serial, entry))

    def _add_waiting(self, entry: QueueEntry, now: float) -> None:
        super()._add_waiting(entry, now)
        if self._starvation:
            self._advance(now)
            entry.waits_from = self._virtual
            self._watch(entry, self._starves_at(entry))

    def _remove_waiting(self, entry: QueueEntry) -> None:
        super()._remove_waiting(entry)
        entry.starvation_serial = 0
        if not self._waiting:
            self._starving.clear()  # the stale items would hold their jobs
        elif len(self._starving) > 2 * len(self._waiting) + SLACK:
            self._starving = [item for item in self._starving if item[1] == item[2].starvation_serial]
            heapq.heapify(self._starving)
