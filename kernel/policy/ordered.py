"""What those policies share whose line is an order: the books of who waits and who runs, and the loop of a decision.

A policy says by what those who wait are ordered, for how many tokens one gets a slot, and who has to go for whom. The
line is a heap; what leaves it is marked, and dropped when it comes up. So a decision costs a logarithm of the length.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod

from kernel.policy.policy import Decision, Grant, Job

PATIENCE = 4  # a job keeps its slot for so many times what its preemption costs: a fifth of the time at most is lost

Key = tuple[float, ...]


class Standing:
    """Where one job stands. `since`: the time from which it waits or runs. `made`: tokens since it got its slot.

    `grant`: tokens until its policy decides anew, 0 for no bound. `level` is the policy's. `serial` says which entry in
    the heap is its own, 0 for none.
    """

    __slots__ = ("grant", "job", "key", "level", "made", "serial", "since")

    def __init__(self, job: Job, since: float) -> None:
        self.job = job
        self.since = since
        self.key: Key = ()
        self.level = 0
        self.made = self.grant = 0
        self.serial = 0

    @property
    def settled(self) -> bool:
        """Whether it has made up for what its preemption will cost."""
        return self.made >= PATIENCE * self.job.switch_cost


class Ordered(ABC):
    """The policies below it say `_key`, and what of the rest they need: `_quantum`, `_victim`, `_expired`, `_prepare`.

    Keys are compared, the lesser one is first; each ends with what makes it the only one of its value. They may grow
    while a job waits, if `_refreshed` says so.
    """

    kind = ""
    reason = ""

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, Standing]] = []
        self._serial = 0
        self._waiting: dict[int, Standing] = {}
        self._running: dict[int, Standing] = {}
        self._spent: dict[int, Standing] = {}  # of those that run, who has used its grant, or has none yet
        self._started: dict[int, Standing] = {}  # of this decision
        self._stopped: dict[int, Standing] = {}
        self._shed: list[Job] = []

    # ---- what a policy says

    @abstractmethod
    def _key(self, standing: Standing, now: float) -> Key:
        """The place in the line of one that begins to wait, or is preempted."""

    def _quantum(self, standing: Standing) -> int:
        """Tokens for which one gets a slot; 0: as many as it wants."""
        return 0

    def _victim(self, first: Standing, now: float) -> Standing | None:
        """Who has to go for the first in the line, where all slots are taken."""
        return None

    def _expired(self, standing: Standing, now: float) -> None:  # noqa: B027
        """One that runs has used its grant."""

    def _prepare(self, now: float) -> None:  # noqa: B027
        """Before a decision: whatever time has changed."""

    def _refreshed(self, standing: Standing, now: float) -> bool:
        """Whether the key of the first in the line still holds; if not, it has a greater one now."""
        return True

    # ---- what it is told

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def arrive(self, job: Job, now: float) -> None:
        if job.id not in self._waiting and job.id not in self._running:
            self._wait(Standing(job, now), now)

    def adopt(self, job: Job, now: float) -> None:
        if job.id not in self._waiting and job.id not in self._running:
            standing = Standing(job, now)
            standing.key = self._key(standing, now)
            self._running[job.id] = self._spent[job.id] = standing

    def read(self, job: Job, tokens: int, now: float) -> None:  # noqa: B027
        """Most policies count only what is made."""

    def progress(self, job: Job, tokens: int, now: float) -> None:
        standing = self._running.get(job.id)
        if standing is not None:
            standing.made += tokens
            if 0 < standing.grant <= standing.made:
                self._spent[job.id] = standing

    def reprioritise(self, job: Job, now: float) -> None:  # noqa: B027
        """Most policies ask for no priority."""

    def leave(self, job: Job, now: float) -> None:
        standing = self._waiting.get(job.id)
        if standing is not None:
            self._unwait(standing)
        elif self._running.pop(job.id, None) is not None:
            self._spent.pop(job.id, None)

    def line(self) -> list[Job]:
        entries = sorted(entry for entry in self._heap if entry[2].serial == entry[1])
        return [standing.job for _, _, standing in entries]

    def running(self) -> list[Job]:
        return [standing.job for standing in self._running.values()]

    def since(self, job: Job) -> float:
        return (self._waiting.get(job.id) or self._running[job.id]).since

    # ---- deciding

    def decide(self, slots: int, now: float) -> Decision:
        self._prepare(now)
        for standing in self._spent.values():
            if standing.grant:
                self._expired(standing, now)
        while (first := self._first(now)) is not None:
            if len(self._running) >= slots:
                victim = self._victim(first, now)
                if victim is None:
                    break
                self._stop(victim, now)
            self._start(first, now)
        return self._decision()

    def _decision(self) -> Decision:
        """What has changed; who still runs though its grant is used gets another one."""
        if not (self._started or self._stopped or self._spent or self._shed):
            return NOTHING
        for number, standing in self._spent.items():
            standing.made = 0
            standing.grant = self._granted(standing)
            self._started[number] = standing
        run = [Grant(standing.job, standing.grant) for standing in self._started.values()]
        decision = Decision(run, [standing.job for standing in self._stopped.values()], self._shed)
        self._started, self._stopped, self._spent, self._shed = {}, {}, {}, []
        return decision

    # ---- moves

    def _first(self, now: float) -> Standing | None:
        """The first in the line."""
        heap = self._heap
        while heap:
            _, serial, standing = heap[0]
            if standing.serial != serial:
                heapq.heappop(heap)
            elif not self._refreshed(standing, now):
                heapq.heappop(heap)
                self._push(standing)
            else:
                return standing
        return None

    def _start(self, standing: Standing, now: float) -> None:
        self._unwait(standing)
        standing.since = now
        standing.made = 0
        standing.grant = self._granted(standing)
        number = standing.job.id
        self._running[number] = standing
        self._stopped.pop(number, None)  # it lost its slot in the same decision: of that only the outcome counts
        self._started[number] = standing

    def _stop(self, standing: Standing, now: float) -> None:
        number = standing.job.id
        del self._running[number]
        self._spent.pop(number, None)
        if self._started.pop(number, None) is None:
            self._stopped[number] = standing
        standing.since = now
        self._wait(standing, now)

    def _granted(self, standing: Standing) -> int:
        """The quantum, stretched by what a preemption costs."""
        quantum = self._quantum(standing)
        if not quantum or not standing.job.preemptible:
            return 0
        return max(quantum, round(PATIENCE * standing.job.switch_cost))

    def _wait(self, standing: Standing, now: float) -> None:
        standing.key = self._key(standing, now)
        self._waiting[standing.job.id] = standing
        self._push(standing)

    def _push(self, standing: Standing) -> None:
        self._serial += 1
        standing.serial = self._serial
        heapq.heappush(self._heap, (standing.key, self._serial, standing))

    def _unwait(self, standing: Standing) -> None:
        del self._waiting[standing.job.id]
        standing.serial = 0
        if len(self._heap) > 2 * len(self._waiting) + 64:  # mostly of those that left
            self._heap = [entry for entry in self._heap if entry[2].serial == entry[1]]
            heapq.heapify(self._heap)


NOTHING = Decision()
