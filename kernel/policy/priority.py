"""Strict priority with aging: the most urgent run, within one priority the first to come, and nothing starves.

After Silberschatz, Galvin, Gagne, "Operating System Concepts", 5.3.4, and the balance set manager of Windows
("Windows Internals", priority boosts for CPU starvation): who waits becomes more urgent with time, and one that
overtook others that way keeps its slot for a quantum before it falls back to its own priority. It is the whole line of
a priority that ages, from when a job of it last got a slot, since all in it wait for the first.
"""

from __future__ import annotations

from kernel.policy.policy import Job
from kernel.policy.preemptive import PreemptivePolicy
from kernel.policy.queue_entry import Key, LazyHeap, QueueEntry

CEILING = 21.0  # one above the highest priority: what waited for long enough is more urgent than anything fresh
MARGIN = 1.0  # by which one of lower priority must have become more urgent than the one it preempts


class _Rank:
    """Those of one priority that wait, by id, and since when none of them has got a slot."""

    __slots__ = ("line", "since")

    def __init__(self, since: float) -> None:
        self.line = LazyHeap()
        self.since = since


class PriorityWithAging(PreemptivePolicy):
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

    def charge_tokens(self, job: Job, tokens: int, now: float) -> None:
        super().charge_tokens(job, tokens, now)
        entry = self._running.get(job.id)
        if entry is not None and entry.overtook and entry.used >= self._tokens:
            entry.overtook = False
            self._rekey(entry, now)

    def reprioritise(self, job: Job, now: float) -> None:
        if (entry := self._waiting.get(job.id)) is not None:
            self._unwait(entry)
            self._wait(entry, now)
        elif (entry := self._running.get(job.id)) is not None:
            entry.used = self._tokens  # what it gained by waiting counted from the old one
            self._rekey(entry, now)

    def line(self) -> list[Job]:
        ranks = (self._ranks[level] for level in sorted(self._ranks, reverse=True))
        return [entry.job for rank in ranks for _, _, entry in rank.line.listed()]

    # ---- who is how urgent

    def _key(self, entry: QueueEntry, now: float) -> Key:
        entry.level = entry.job.priority
        return (entry.job.id,)

    def _last(self, entry: QueueEntry) -> Key:
        return (self._urgency(entry), -entry.job.id)

    def _guard(self, entry: QueueEntry) -> float:
        """What one that aged must be ahead of: for a quantum it is as urgent as it was when it got its slot."""
        return entry.boost if entry.used < self._tokens else entry.level

    def _urgency(self, entry: QueueEntry) -> float:
        """How urgent it is while it runs: what it gained counts towards all, if it overtook one of higher priority."""
        return self._guard(entry) if entry.overtook else entry.level

    def _aged(self, level: int, now: float) -> float:
        """How urgent the line of a priority is."""
        return min(level + self._aging * (now - self._ranks[level].since), CEILING)

    def _first(self, now: float) -> QueueEntry | None:
        best: QueueEntry | None = None
        most, longest = 0.0, 0.0
        for level, rank in self._ranks.items():
            urgency = self._aged(level, now)
            if best is None or (urgency, -rank.since) > (most, longest):
                best, most, longest = rank.line.first(), urgency, -rank.since
        return best

    def _victim(self, first: QueueEntry, now: float) -> QueueEntry | None:
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

    def _start(self, entry: QueueEntry, now: float) -> None:
        level = entry.level
        entry.boost = self._aged(level, now)
        entry.overtook = any(other > level for other in self._ranks)
        self._ranks[level].since = now
        super()._start(entry, now)

    def _stop(self, entry: QueueEntry, now: float) -> None:
        gained = self._urgency(entry) - entry.level
        super()._stop(entry, now)
        if gained > 0:  # it has not had what its line waited for: that has waited for as long still
            rank = self._ranks[entry.level]
            rank.since = min(rank.since, now - gained / self._aging)

    def _wait(self, entry: QueueEntry, now: float) -> None:
        entry.key = self._key(entry, now)
        self._waiting[entry.job.id] = entry
        rank = self._ranks.get(entry.level)
        if rank is None:
            rank = self._ranks[entry.level] = _Rank(entry.since)
        rank.line.push(entry, entry.key)

    def _unwait(self, entry: QueueEntry) -> None:
        del self._waiting[entry.job.id]
        line = self._ranks[entry.level].line
        line.remove(entry)
        if not len(line):
            del self._ranks[entry.level]
