"""Strict priority with aging: the most urgent run, within one priority the first to come, and nothing starves.

After Silberschatz, Galvin, Gagne, "Operating System Concepts", 5.3.4, and the balance set manager of Windows
("Windows Internals", priority boosts for CPU starvation): who waits becomes more urgent with time, and one that
overtook others that way keeps its slot for a quantum before it falls back to its own priority. It is the whole line of
a priority that ages, from when a job of it last got a slot, since all in it wait for the first.
"""

from __future__ import annotations

import bisect

from kernel.policy.policy import Decision, Grant, Job
from kernel.policy.standing import PATIENCE

CEILING = 21.0  # one above the highest priority: what waited for long enough is more urgent than anything fresh
MARGIN = 1.0  # by which one of lower priority must have become more urgent than the one it preempts


class _Standing:
    """Where one job stands. `since`: the time from which it waits. For `quantum` more tokens it is as urgent as it was
    when it got its slot (`boost`), towards others that age; towards all, if it `overtook` one of higher priority. It
    has `made` so many tokens since it got its slot."""

    __slots__ = ("boost", "job", "level", "made", "overtook", "quantum", "since")

    def __init__(self, job: Job, since: float) -> None:
        self.job = job
        self.level = job.priority
        self.since = since
        self.boost = 0.0
        self.made = self.quantum = 0
        self.overtook = False

    @property
    def guard(self) -> float:
        """What one that aged must be ahead of."""
        return self.boost if self.quantum > 0 else self.level

    @property
    def rank(self) -> float:
        """How urgent it is while it runs."""
        return self.guard if self.overtook else self.level


class _Line:
    """Those of one priority that wait, by id, and since when none of them has got a slot."""

    __slots__ = ("jobs", "since")

    def __init__(self, since: float) -> None:
        self.jobs: list[_Standing] = []
        self.since = since


class PriorityWithAging:
    """`aging`: priorities that a line gains per second of waiting; `quantum`: tokens a job keeps what it gained so.

    A job whose own priority is higher preempts at once. One that aged must be a whole priority ahead, and then has its
    quantum: so two jobs exchange a slot at most once in `quantum` tokens and 1 / `aging` seconds. A preempted job goes
    back to its place, which its id gives it. None preempts another of its own priority, and none before it has made up
    for what its preemption costs.
    """

    kind = "priority"
    reason = ""

    def __init__(self, aging: float, quantum: int) -> None:
        self._aging = aging
        self._quantum = quantum
        self._waiting: dict[int, _Standing] = {}
        self._lines: dict[int, _Line] = {}  # by priority; none is empty
        self._running: dict[int, _Standing] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def arrive(self, job: Job, now: float) -> None:
        if job.id not in self._waiting and job.id not in self._running:
            self._wait(_Standing(job, now))

    def adopt(self, job: Job, now: float) -> None:
        if job.id not in self._waiting and job.id not in self._running:
            self._running[job.id] = _Standing(job, now)

    def read(self, job: Job, tokens: int, now: float) -> None:
        """Only what is made counts."""

    def progress(self, job: Job, tokens: int, now: float) -> None:
        standing = self._running.get(job.id)
        if standing is not None:
            standing.quantum -= tokens
            standing.made += tokens

    def reprioritise(self, job: Job, now: float) -> None:
        standing = self._waiting.get(job.id)
        if standing is not None:
            self._unwait(standing)
            standing.level = job.priority
            self._wait(standing)
        elif job.id in self._running:
            standing = self._running[job.id]
            standing.level, standing.quantum = job.priority, 0  # what it gained by waiting counted from the old one

    def leave(self, job: Job, now: float) -> None:
        standing = self._waiting.get(job.id)
        if standing is not None:
            self._unwait(standing)
        else:
            self._running.pop(job.id, None)

    def decide(self, slots: int, now: float) -> Decision:
        before = set(self._running)
        preempted: dict[int, Job] = {}
        while self._lines:
            level = max(self._lines, key=lambda level: (self._urgency(level, now), -self._lines[level].since))
            first = self._lines[level].jobs[0]
            if len(self._running) >= slots:
                victim = self._victim()
                if victim is None or not self._beats(level, victim, now):
                    break
                self._preempt(victim, now)
                preempted[victim.job.id] = victim.job
            self._run(first, now)
        # One may have lost its slot and got another one: of that only the outcome counts.
        run = [Grant(standing.job, 0) for number, standing in self._running.items() if number not in before]
        return Decision(run, [job for number, job in preempted.items() if number in self._waiting and number in before])

    def line(self) -> list[Job]:
        return [standing.job for level in sorted(self._lines, reverse=True) for standing in self._lines[level].jobs]

    def running(self) -> list[Job]:
        return [standing.job for standing in self._running.values()]

    def since(self, job: Job) -> float:
        return (self._waiting.get(job.id) or self._running[job.id]).since

    # ---- who is how urgent

    def _urgency(self, level: int, now: float) -> float:
        """How urgent the line of a priority is."""
        return min(level + self._aging * (now - self._lines[level].since), CEILING)

    def _victim(self) -> _Standing | None:
        """The least urgent of those that run and may be stopped, the last to come of several."""
        candidates = (
            standing
            for standing in self._running.values()
            if standing.job.preemptible and standing.made >= PATIENCE * standing.job.switch_cost
        )
        return min(candidates, key=lambda standing: (standing.rank, -standing.job.id), default=None)

    def _beats(self, level: int, running: _Standing, now: float) -> bool:
        """Whether the first in the line of priority `level` is to have the slot of `running`."""
        if level > running.level:
            return level > running.rank
        return level < running.level and self._urgency(level, now) >= running.guard + MARGIN

    # ---- moves

    def _wait(self, standing: _Standing) -> None:
        line = self._lines.get(standing.level)
        if line is None:
            line = self._lines[standing.level] = _Line(standing.since)
        bisect.insort(line.jobs, standing, key=_by_id)
        self._waiting[standing.job.id] = standing

    def _unwait(self, standing: _Standing) -> None:
        del self._waiting[standing.job.id]
        jobs = self._lines[standing.level].jobs
        del jobs[bisect.bisect_left(jobs, standing.job.id, key=_by_id)]
        if not jobs:
            del self._lines[standing.level]

    def _run(self, standing: _Standing, now: float) -> None:
        line = self._lines[standing.level]
        standing.boost, standing.quantum, standing.made = self._urgency(standing.level, now), self._quantum, 0
        standing.overtook = any(level > standing.level for level in self._lines)
        line.since = now
        self._unwait(standing)
        self._running[standing.job.id] = standing

    def _preempt(self, standing: _Standing, now: float) -> None:
        del self._running[standing.job.id]
        standing.since = now
        gained = standing.rank - standing.level
        self._wait(standing)
        if gained > 0:  # it has not had what its line waited for: that has waited for as long still
            line = self._lines[standing.level]
            line.since = min(line.since, now - gained / self._aging)


def _by_id(standing: _Standing) -> int:
    return standing.job.id
