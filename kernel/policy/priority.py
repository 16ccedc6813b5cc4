"""Strict priority with aging: the most urgent run, within one priority the first to come, and nothing starves.

After Silberschatz, Galvin, Gagne, "Operating System Concepts", 5.3.4, and the balance set manager of Windows
("Windows Internals", priority boosts for CPU starvation): who waits becomes more urgent with time, and one that
overtook others that way keeps its slot for a quantum before it falls back to its own priority. It is the whole line of
a priority that ages, from when a job of it last got a slot, since all in it wait for the first.
"""

from __future__ import annotations

from kernel.policy.policy import Job
from kernel.policy.preemptive import Preemptive
from kernel.policy.queue_entry import Key, Line, Standing

CEILING = 21.0  # one above the highest priority: what waited for long enough is more urgent than anything fresh
MARGIN = 1.0  # by which one of lower priority must have become more urgent than the one it preempts


class _Rank:
    """Those of one priority that wait, by id, and since when none of them has got a slot."""

    __slots__ = ("line", "since")

    def __init__(self, since: float) -> None:
        self.line = Line()
        self.since = since


class PriorityWithAging(Preemptive):
    """`aging`: priorities that a line gains per second of waiting; `quantum`: tokens a job keeps what it gained so.

    A job whose own priority is higher preempts at once. One that aged must be a whole priority ahead, and then has its
    quantum: so two jobs exchange a slot at most once in `quantum` tokens and 1 / `aging` seconds. A preempted job goes
    back to its place, which its id gives it. None preempts another of its own priority, and none before it has made up
    for what its preemption costs.
    """

    kind = "priority"

    def __init__(self, aging: float, quantum: int) -> None:
        super().__init__()
        self._aging = aging
        self._tokens = quantum
        self._ranks: dict[int, _Rank] = {}  # those that wait, by priority; none is empty

    def adopt(self, job: Job, now: float) -> None:
        super().adopt(job, now)
        self._running[job.id].used = self._tokens  # nobody knows what it gained

    def progress(self, job: Job, tokens: int, now: float) -> None:
        super().progress(job, tokens, now)
        standing = self._running.get(job.id)
        if standing is not None and standing.overtook and standing.used >= self._tokens:
            standing.overtook = False
            self._rekey(standing, now)

    def reprioritise(self, job: Job, now: float) -> None:
        if (standing := self._waiting.get(job.id)) is not None:
            self._unwait(standing)
            self._wait(standing, now)
        elif (standing := self._running.get(job.id)) is not None:
            standing.used = self._tokens  # what it gained by waiting counted from the old one
            self._rekey(standing, now)

    def line(self) -> list[Job]:
        ranks = (self._ranks[level] for level in sorted(self._ranks, reverse=True))
        return [standing.job for rank in ranks for _, _, standing in rank.line.listed()]

    # ---- who is how urgent

    def _key(self, standing: Standing, now: float) -> Key:
        standing.level = standing.job.priority
        return (standing.job.id,)

    def _last(self, standing: Standing) -> Key:
        return (self._urgency(standing), -standing.job.id)

    def _guard(self, standing: Standing) -> float:
        """What one that aged must be ahead of: for a quantum it is as urgent as it was when it got its slot."""
        return standing.boost if standing.used < self._tokens else standing.level

    def _urgency(self, standing: Standing) -> float:
        """How urgent it is while it runs: what it gained counts towards all, if it overtook one of higher priority."""
        return self._guard(standing) if standing.overtook else standing.level

    def _aged(self, level: int, now: float) -> float:
        """How urgent the line of a priority is."""
        return min(level + self._aging * (now - self._ranks[level].since), CEILING)

    def _first(self, now: float) -> Standing | None:
        best: Standing | None = None
        most, longest = 0.0, 0.0
        for level, rank in self._ranks.items():
            urgency = self._aged(level, now)
            if best is None or (urgency, -rank.since) > (most, longest):
                best, most, longest = rank.line.first(), urgency, -rank.since
        return best

    def _victim(self, first: Standing, now: float) -> Standing | None:
        """The least urgent of those that run and may be stopped, the last to come of several; if it is to go."""
        victim = self._victims.best(self._may_go)
        if victim is None:
            return None
        level = first.level
        if level > victim.level:
            goes = level > self._urgency(victim)
        else:
            goes = level < victim.level and self._aged(level, now) >= self._guard(victim) + MARGIN
        return victim if goes else None

    # ---- moves

    def _start(self, standing: Standing, now: float) -> None:
        level = standing.level
        standing.boost = self._aged(level, now)
        standing.overtook = any(other > level for other in self._ranks)
        self._ranks[level].since = now
        super()._start(standing, now)

    def _stop(self, standing: Standing, now: float) -> None:
        gained = self._urgency(standing) - standing.level
        super()._stop(standing, now)
        if gained > 0:  # it has not had what its line waited for: that has waited for as long still
            rank = self._ranks[standing.level]
            rank.since = min(rank.since, now - gained / self._aging)

    def _wait(self, standing: Standing, now: float) -> None:
        standing.key = self._key(standing, now)
        self._waiting[standing.job.id] = standing
        rank = self._ranks.get(standing.level)
        if rank is None:
            rank = self._ranks[standing.level] = _Rank(standing.since)
        rank.line.push(standing, standing.key)

    def _unwait(self, standing: Standing) -> None:
        del self._waiting[standing.job.id]
        line = self._ranks[standing.level].line
        line.remove(standing)
        if not len(line):
            del self._ranks[standing.level]
