"""What those policies share whose line is an order: the books of who waits and who runs, and the loop of a decision.

A policy says by what those who wait are ordered, for how many tokens one gets a slot, and who has to go for whom. No
decision looks at more jobs than it moves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from kernel.policy.policy import Decision, Grant, Job
from kernel.policy.queue_entry import PATIENCE, Key, Line, Standing

SMOOTHING = 0.95  # weight of the past in the pace
NOTHING = Decision()


class Ordered(ABC):
    """The policies below it say `_key`, and what of the rest they need.

    Each key ends with what makes it the only one of its value. `_pace`: seconds in which a job that runs makes a token,
    as observed; 0 as long as none was.
    """

    kind = ""
    reason = ""

    def __init__(self) -> None:
        self._line = Line()
        self._waiting: dict[int, Standing] = {}
        self._running: dict[int, Standing] = {}
        self._spent: dict[int, Standing] = {}  # of those that run, who has used its grant, or has none yet
        self._started: dict[int, Standing] = {}  # of this decision
        self._stopped: dict[int, Standing] = {}
        self._shed: list[Job] = []
        self._pace = 0.0
        self._turns = 0

    # ---- what a policy says

    @abstractmethod
    def _key(self, standing: Standing, now: float) -> Key:
        """The place of one that begins to wait, is preempted, or has used its grant."""

    def _quantum(self, standing: Standing) -> int:
        """Tokens for which one gets a slot; 0: as many as it wants."""
        return 0

    def _victim(self, first: Standing, now: float) -> Standing | None:
        """Who has to go for the first in the line, where all slots are taken."""
        return None

    def _prepare(self, now: float) -> None:  # noqa: B027
        """Before a decision: whatever time, or a grant that was used, has changed."""

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
            self._runs(standing)
            self._spent[job.id] = standing

    def read(self, job: Job, tokens: int, now: float) -> None:  # noqa: B027
        """Most policies count only what is made."""

    def progress(self, job: Job, tokens: int, now: float) -> None:
        standing = self._running.get(job.id)
        if standing is None or tokens <= 0:
            return
        pace = (now - standing.last) / tokens
        self._pace = SMOOTHING * self._pace + (1 - SMOOTHING) * pace if self._pace else pace
        standing.last = now
        standing.made += tokens
        standing.served += tokens
        standing.used += tokens
        if 0 < standing.grant <= standing.used:
            self._spent[job.id] = standing

    def reprioritise(self, job: Job, now: float) -> None:  # noqa: B027
        """Most policies ask for no priority."""

    def leave(self, job: Job, now: float) -> None:
        if (standing := self._waiting.get(job.id)) is not None:
            self._unwait(standing)
        elif (standing := self._running.get(job.id)) is not None:
            self._runs_no_more(standing)

    def line(self) -> list[Job]:
        return [standing.job for _, _, standing in self._line.listed()]

    def running(self) -> list[Job]:
        return [standing.job for standing in self._running.values()]

    def since(self, job: Job) -> float:
        return (self._waiting.get(job.id) or self._running[job.id]).since

    # ---- deciding

    def decide(self, slots: int, now: float) -> Decision:
        self._prepare(now)
        while (first := self._first(now)) is not None:
            if len(self._running) >= slots:
                victim = self._victim(first, now)
                if victim is None:
                    break
                self._stop(victim, now)
            self._start(first, now)
        if not (self._started or self._stopped or self._spent or self._shed):
            return NOTHING
        for number, standing in self._spent.items():  # it keeps its slot, for a grant more
            standing.used, standing.grant = 0, self._granted(standing)
            self._started[number] = standing
        run = [Grant(standing.job, standing.grant) for standing in self._started.values()]
        decision = Decision(run, [standing.job for standing in self._stopped.values()], self._shed)
        self._started, self._stopped, self._spent, self._shed = {}, {}, {}, []
        return decision

    def _granted(self, standing: Standing) -> int:
        """The quantum, stretched by what a preemption costs."""
        if not standing.job.preemptible:
            return 0
        quantum = self._quantum(standing)
        return max(quantum, round(PATIENCE * standing.job.switch_cost)) if quantum else 0

    def _spent_one(self) -> Standing | None:
        """Who has used its grant and was not dealt with yet, the first of several."""
        return next((standing for standing in self._spent.values() if standing.grant), None)

    def _turn(self) -> int:
        """Counts up: who asks later is behind."""
        self._turns += 1
        return self._turns

    # ---- moves

    def _first(self, now: float) -> Standing | None:
        """The first in the line."""
        return self._line.first()

    def _start(self, standing: Standing, now: float) -> None:
        self._unwait(standing)
        standing.since = standing.last = now
        standing.made = standing.used = 0
        standing.grant = self._granted(standing)
        self._runs(standing)
        number = standing.job.id
        if self._stopped.pop(number, None) is None or standing.grant:
            self._started[number] = standing

    def _stop(self, standing: Standing, now: float) -> None:
        number = standing.job.id
        self._runs_no_more(standing)
        if self._started.pop(number, None) is None:  # else it lost what it got in the same decision
            self._stopped[number] = standing
        standing.since = now
        self._wait(standing, now)

    def _runs(self, standing: Standing) -> None:
        self._running[standing.job.id] = standing

    def _runs_no_more(self, standing: Standing) -> None:
        del self._running[standing.job.id]
        self._spent.pop(standing.job.id, None)

    def _wait(self, standing: Standing, now: float) -> None:
        standing.key = self._key(standing, now)
        self._waiting[standing.job.id] = standing
        self._line.push(standing, standing.key)

    def _unwait(self, standing: Standing) -> None:
        del self._waiting[standing.job.id]
        self._line.remove(standing)
