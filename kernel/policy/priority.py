"""Strict priority with aging: the most urgent run, within one priority the first to come, and nothing starves.

After Silberschatz, Galvin, Gagne, "Operating System Concepts", 5.3.4, and the balance set manager of Windows
("Windows Internals", priority boosts for CPU starvation): a job that waits becomes more urgent with time, and one that
overtook others that way keeps its slot for a quantum before it falls back to its own priority.
"""

from __future__ import annotations

import bisect

from kernel.policy.policy import Decision, Job

CEILING = 21.0  # one above the highest priority: what waited for long enough is more urgent than anything fresh
MARGIN = 1.0  # by which one of lower priority must have become more urgent than the one it preempts


class _Standing:
    """Where one job stands. `since`: the time from which its waiting counts. For `quantum` more tokens it is as urgent
    as it was when it got its slot (`boost`), towards others that age; towards all, if it `overtook` one of higher
    priority."""

    __slots__ = ("boost", "job", "level", "overtook", "quantum", "since")

    def __init__(self, job: Job, since: float) -> None:
        self.job = job
        self.level = job.priority
        self.since = since
        self.boost = 0.0
        self.quantum = 0
        self.overtook = False

    @property
    def guard(self) -> float:
        """What one that aged must be ahead of."""
        return self.boost if self.quantum > 0 else self.level

    @property
    def rank(self) -> float:
        """How urgent it is while it runs."""
        return self.guard if self.overtook else self.level


class PriorityWithAging:
    """`aging`: priorities that a job gains per second of waiting; `quantum`: tokens it keeps what it gained so.

    A job whose own priority is higher preempts at once. One that aged must be a whole priority ahead, and then has its
    quantum: so two jobs exchange a slot at most once in `quantum` tokens and 1 / `aging` seconds. A preempted job goes
    back to its place, which its id gives it. None preempts another of its own priority.
    """

    def __init__(self, aging: float, quantum: int) -> None:
        self._aging = aging
        self._quantum = quantum
        self._waiting: dict[int, _Standing] = {}
        self._levels: dict[int, list[_Standing]] = {}  # those that wait, by priority and then by id
        self._running: dict[int, _Standing] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def arrive(self, job: Job, now: float) -> None:
        if job.id not in self._waiting and job.id not in self._running:
            self._wait(_Standing(job, now))

    def progress(self, job: Job, tokens: int, now: float) -> None:
        standing = self._running.get(job.id)
        if standing is not None:
            standing.quantum -= tokens

    def reprioritise(self, job: Job, now: float) -> None:
        standing = self._waiting.get(job.id)
        if standing is not None:
            self._unwait(standing)
            standing.level = job.priority
            self._wait(standing)
        elif job.id in self._running:
            self._running[job.id].level = job.priority

    def leave(self, job: Job, now: float) -> None:
        standing = self._waiting.get(job.id)
        if standing is not None:
            self._unwait(standing)
        else:
            self._running.pop(job.id, None)

    def decide(self, slots: int, now: float) -> Decision:
        decision = Decision([], [])
        while self._levels:
            first = self._first(now)
            if len(self._running) >= slots:
                victim = self._victim()
                if victim is None or not self._beats(first, victim, now):
                    break
                self._preempt(victim, now)
                decision.preempt.append(victim.job)
            self._run(first, now)
            decision.run.append(first.job)
        return decision

    def line(self) -> list[Job]:
        return [standing.job for level in sorted(self._levels, reverse=True) for standing in self._levels[level]]

    # ---- who is how urgent

    def _urgency(self, standing: _Standing, now: float) -> float:
        """How urgent one is that waits."""
        return min(standing.level + self._aging * (now - standing.since), CEILING)

    def _first(self, now: float) -> _Standing:
        """The one to run next: the most urgent of those that are the first of their priority."""
        heads = (level[0] for level in self._levels.values())
        return max(heads, key=lambda standing: (self._urgency(standing, now), -standing.since, -standing.job.id))

    def _victim(self) -> _Standing | None:
        """The least urgent of those that run and can stop, the last to come of several."""
        candidates = (standing for standing in self._running.values() if standing.job.preemptible)
        return min(candidates, key=lambda standing: (standing.rank, -standing.job.id), default=None)

    def _beats(self, waiting: _Standing, running: _Standing, now: float) -> bool:
        if waiting.level > running.level:
            return waiting.level > running.rank
        return waiting.level < running.level and self._urgency(waiting, now) >= running.guard + MARGIN

    # ---- moves

    def _wait(self, standing: _Standing) -> None:
        self._waiting[standing.job.id] = standing
        bisect.insort(self._levels.setdefault(standing.level, []), standing, key=_by_id)

    def _unwait(self, standing: _Standing) -> None:
        del self._waiting[standing.job.id]
        level = self._levels[standing.level]
        del level[bisect.bisect_left(level, standing.job.id, key=_by_id)]
        if not level:
            del self._levels[standing.level]

    def _run(self, standing: _Standing, now: float) -> None:
        standing.boost, standing.quantum = self._urgency(standing, now), self._quantum
        self._unwait(standing)
        standing.overtook = any(level > standing.level for level in self._levels)
        self._running[standing.job.id] = standing

    def _preempt(self, standing: _Standing, now: float) -> None:
        del self._running[standing.job.id]
        standing.since = now
        if standing.rank > standing.level:  # it has not had what it waited for: it has waited that long still
            standing.since -= (standing.rank - standing.level) / self._aging
        self._wait(standing)


def _by_id(standing: _Standing) -> int:
    return standing.job.id
