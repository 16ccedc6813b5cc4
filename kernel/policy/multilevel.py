"""What those policies share that favour who has had least: levels of attained service, and a promotion of the starved.

A level is twice as wide as the one above it, as in multi-level feedback queues since Corbato's CTSS (1962). Within a
level the first to come goes first, and runs until it has left the level: equals do not take turns for nothing.
"""

from __future__ import annotations

import heapq
import math
from abc import abstractmethod

from kernel.policy.preemptive import PreemptivePolicy
from kernel.policy.queue_entry import SLACK, Key, QueueEntry

LEVELS = 16  # the last one is not left
STARVED = -1  # the level of who waited for too long
LOOKS = 32  # at who may be starved, in one decision at most


class MultilevelPolicy(PreemptivePolicy):
    """Level n begins at `quantum` x (2^n - 1) tokens and is `quantum` x 2^n wide. The policies below say `_attained`.

    Who has waited `starvation` times as long as what it attained takes, goes before all others, in the order in which
    that came to be, and keeps its slot for the width of its own level. So a wait ends at the latest when those that
    were starved before have had their grants; but `starvation` 0 promises nothing. Waiting is counted in tokens that
    one that runs makes meanwhile, so that a change of pace moves nobody.
    """

    def __init__(self, quantum: int, starvation: float) -> None:
        super().__init__()
        self._width = quantum
        self._starvation = starvation
        self._virtual = 0.0  # tokens that one that always ran would have made
        self._virtual_at = 0.0
        self._patience: list[tuple[float, int, QueueEntry]] = []  # those that wait, by when they starve in `_virtual`

    @abstractmethod
    def _attained(self, entry: QueueEntry) -> float:
        """What it has had, in tokens. It never becomes less."""

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

    def _beats(self, first: QueueEntry, running: QueueEntry) -> bool:
        return first.level < running.level or (running.job.id in self._spent and first.key < running.key)

    def _prepare(self, now: float) -> None:
        self._elapse(now)
        for entry in self._spent.values():
            self._rekey(entry, now)

    def _first(self, now: float) -> QueueEntry | None:
        if self._starvation and (starved := self._starved()) is not None:
            if starved.level != STARVED:
                starved.level, starved.key = STARVED, (STARVED, self._turn())
            return starved
        while (first := self._line.first()) is not None:
            if self._level(self._attained(first)) == first.level:
                return first
            self._line.remove(first)  # its program has had more meanwhile
            first.key = self._key(first, now)
            self._line.push(first, first.key)
        return None

    # ---- who starves

    def _elapse(self, now: float) -> None:
        if now > self._virtual_at:
            if self._pace:
                self._virtual += (now - self._virtual_at) / self._pace
            self._virtual_at = now

    def _starved(self) -> QueueEntry | None:
        """Who has waited for too long, the longest overdue of several."""
        patience = self._patience
        looks = LOOKS
        while patience and patience[0][0] < self._virtual and looks:
            _, serial, entry = patience[0]
            if entry.starves != serial:
                heapq.heappop(patience)
                continue
            if (due := self._starves_at(entry)) < self._virtual:
                return entry
            heapq.heappop(patience)  # its program has had more meanwhile
            self._await(entry, due)
            looks -= 1
        return None

    def _starves_at(self, entry: QueueEntry) -> float:
        return entry.boost + self._starvation * max(self._attained(entry), self._width)

    def _await(self, entry: QueueEntry, due: float) -> None:
        entry.starves = self._turn()
        heapq.heappush(self._patience, (due, entry.starves, entry))

    def _wait(self, entry: QueueEntry, now: float) -> None:
        super()._wait(entry, now)
        if self._starvation:
            self._elapse(now)
            entry.boost = self._virtual
            self._await(entry, self._starves_at(entry))

    def _unwait(self, entry: QueueEntry) -> None:
        super()._unwait(entry)
        entry.starves = 0
        if len(self._patience) > 2 * len(self._waiting) + SLACK:
            self._patience = [entry for entry in self._patience if entry[1] == entry[2].starves]
            heapq.heapify(self._patience)
