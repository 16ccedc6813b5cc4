"""What those policies share that favour who has had least: levels of attained service, and a promotion of the starved.

A level is twice as wide as the one above it, as in multi-level feedback queues since Corbato's CTSS (1962). Within a
level the first to come goes first, and runs until it has left the level: equals do not take turns for nothing.
"""

from __future__ import annotations

import heapq
import math
from abc import abstractmethod

from kernel.policy.preemptive import Preemptive
from kernel.policy.queue_entry import SLACK, Key, Standing

LEVELS = 16  # the last one is not left
STARVED = -1  # the level of who waited for too long
LOOKS = 32  # at who may be starved, in one decision at most


class Levels(Preemptive):
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
        self._patience: list[tuple[float, int, Standing]] = []  # those that wait, by when they starve in `_virtual`

    @abstractmethod
    def _attained(self, standing: Standing) -> float:
        """What it has had, in tokens. It never becomes less."""

    def _level(self, attained: float) -> int:
        return min(int(attained / self._width + 1).bit_length() - 1, LEVELS - 1)

    def _key(self, standing: Standing, now: float) -> Key:
        standing.level = self._level(self._attained(standing))
        return (standing.level, standing.job.id)

    def _quantum(self, standing: Standing) -> int:
        attained = self._attained(standing)
        level = self._level(attained)
        width = self._width << level
        if standing.level == STARVED or level == LEVELS - 1:
            return width
        return max(math.ceil(self._width * ((2 << level) - 1) - attained), 1)

    def _beats(self, first: Standing, running: Standing) -> bool:
        return first.level < running.level or (running.job.id in self._spent and first.key < running.key)

    def _prepare(self, now: float) -> None:
        self._elapse(now)
        for standing in self._spent.values():
            self._rekey(standing, now)

    def _first(self, now: float) -> Standing | None:
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

    def _starved(self) -> Standing | None:
        """Who has waited for too long, the longest overdue of several."""
        patience = self._patience
        looks = LOOKS
        while patience and patience[0][0] < self._virtual and looks:
            _, serial, standing = patience[0]
            if standing.starves != serial:
                heapq.heappop(patience)
                continue
            if (due := self._starves_at(standing)) < self._virtual:
                return standing
            heapq.heappop(patience)  # its program has had more meanwhile
            self._await(standing, due)
            looks -= 1
        return None

    def _starves_at(self, standing: Standing) -> float:
        return standing.boost + self._starvation * max(self._attained(standing), self._width)

    def _await(self, standing: Standing, due: float) -> None:
        standing.starves = self._turn()
        heapq.heappush(self._patience, (due, standing.starves, standing))

    def _wait(self, standing: Standing, now: float) -> None:
        super()._wait(standing, now)
        if self._starvation:
            self._elapse(now)
            standing.boost = self._virtual
            self._await(standing, self._starves_at(standing))

    def _unwait(self, standing: Standing) -> None:
        super()._unwait(standing)
        standing.starves = 0
        if len(self._patience) > 2 * len(self._waiting) + SLACK:
            self._patience = [entry for entry in self._patience if entry[1] == entry[2].starves]
            heapq.heapify(self._patience)
