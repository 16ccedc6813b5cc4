"""What those policies share whose line is an order: the books of who waits and who runs, and the loop of a decision.

A policy says by what those who wait are ordered, for how many tokens one gets a slot, and who has to go for whom. No
decision looks at more jobs than it moves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from kernel.policy.policy import Decision, Grant, Job
from kernel.policy.queue_entry import PATIENCE, Key, LazyHeap, QueueEntry

SMOOTHING = 0.95  # weight of the past in the pace
NOTHING = Decision()


class OrderedPolicy(ABC):
    """The policies below it say `_key`, and what of the rest they need.

    Each key ends with what makes it the only one of its value. `_pace`: seconds in which a job that runs makes a token,
    as observed; 0 as long as none was.
    """

    kind = ""
    reason = ""

    def __init__(self) -> None:
        self._line = LazyHeap()
        self._waiting: dict[int, QueueEntry] = {}
        self._running: dict[int, QueueEntry] = {}
        self._spent: dict[int, QueueEntry] = {}  # of those that run, who has used its grant, or has none yet
        self._started: dict[int, QueueEntry] = {}  # of this decision
        self._stopped: dict[int, QueueEntry] = {}
        self._shed: list[Job] = []
        self._pace = 0.0
        self._turns = 0

    # ---- what a policy says

    @abstractmethod
    def _key(self, entry: QueueEntry, now: float) -> Key:
        """The place of one that begins to wait, is preempted, or has used its grant."""

    def _quantum(self, entry: QueueEntry) -> int:
        """Tokens for which one gets a slot; 0: as many as it wants."""
        return 0

    def _victim(self, first: QueueEntry, now: float) -> QueueEntry | None:
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
            self._wait(QueueEntry(job, now), now)

    def adopt(self, job: Job, now: float) -> None:
        if job.id not in self._waiting and job.id not in self._running:
            entry = QueueEntry(job, now)
            entry.key = self._key(entry, now)
            self._runs(entry)
            self._spent[job.id] = entry

    def charge_prompt(self, job: Job, tokens: int, now: float) -> None:  # noqa: B027
        """Most policies count only what is made."""

    def charge_tokens(self, job: Job, tokens: int, now: float) -> None:
        entry = self._running.get(job.id)
        if entry is None or tokens <= 0:
            return
        pace = (now - entry.last) / tokens
        self._pace = SMOOTHING * self._pace + (1 - SMOOTHING) * pace if self._pace else pace
        entry.last = now
        entry.made += tokens
        entry.served += tokens
        entry.used += tokens
        if 0 < entry.grant <= entry.used:
            self._spent[job.id] = entry

    def reprioritise(self, job: Job, now: float) -> None:  # noqa: B027
        """Most policies ask for no priority."""

    def leave(self, job: Job, now: float) -> None:
        if (entry := self._waiting.get(job.id)) is not None:
            self._unwait(entry)
        elif (entry := self._running.get(job.id)) is not None:
            self._runs_no_more(entry)

    def line(self) -> list[Job]:
        return [entry.job for _, _, entry in self._line.listed()]

    def running(self) -> list[Job]:
        return [entry.job for entry in self._running.values()]

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
        for number, entry in self._spent.items():  # it keeps its slot, for a grant more
            entry.used, entry.grant = 0, self._granted(entry)
            self._started[number] = entry
        run = [Grant(entry.job, entry.grant) for entry in self._started.values()]
        decision = Decision(run, [entry.job for entry in self._stopped.values()], self._shed)
        self._started, self._stopped, self._spent, self._shed = {}, {}, {}, []
        return decision

    def _granted(self, entry: QueueEntry) -> int:
        """The quantum, stretched by what a preemption costs."""
        if not entry.job.preemptible:
            return 0
        quantum = self._quantum(entry)
        return max(quantum, round(PATIENCE * entry.job.switch_cost)) if quantum else 0

    def _spent_one(self) -> QueueEntry | None:
        """Who has used its grant and was not dealt with yet, the first of several."""
        return next((entry for entry in self._spent.values() if entry.grant), None)

    def _turn(self) -> int:
        """Counts up: who asks later is behind."""
        self._turns += 1
        return self._turns

    # ---- moves

    def _first(self, now: float) -> QueueEntry | None:
        """The first in the line."""
        return self._line.first()

    def _start(self, entry: QueueEntry, now: float) -> None:
        self._unwait(entry)
        entry.since = entry.last = now
        entry.made = entry.used = 0
        entry.grant = self._granted(entry)
        self._runs(entry)
        number = entry.job.id
        if self._stopped.pop(number, None) is None or entry.grant:
            self._started[number] = entry

    def _stop(self, entry: QueueEntry, now: float) -> None:
        number = entry.job.id
        self._runs_no_more(entry)
        if self._started.pop(number, None) is None:  # else it lost what it got in the same decision
            self._stopped[number] = entry
        entry.since = now
        self._wait(entry, now)

    def _runs(self, entry: QueueEntry) -> None:
        self._running[entry.job.id] = entry

    def _runs_no_more(self, entry: QueueEntry) -> None:
        del self._running[entry.job.id]
        self._spent.pop(entry.job.id, None)

    def _wait(self, entry: QueueEntry, now: float) -> None:
        entry.key = self._key(entry, now)
        self._waiting[entry.job.id] = entry
        self._line.push(entry, entry.key)

    def _unwait(self, entry: QueueEntry) -> None:
        del self._waiting[entry.job.id]
        self._line.remove(entry)
