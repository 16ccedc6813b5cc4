"""Strict priority with aging: the most urgent job runs first; jobs of equal priority run in order of arrival.

After Silberschatz, Galvin, Gagne, "Operating System Concepts", 5.3.4, and the balance set manager of Windows ("Windows
Internals", priority boosts for CPU starvation). Waiting jobs become more urgent with time, so no job starves. A job
that overtook others by aging keeps its slot for a quantum, then falls back to its own priority. Aging applies to the
whole queue of a priority, since all jobs in a queue wait for the first one. It counts from the time when a job of that
queue last got a slot.
"""

from __future__ import annotations

from kernel.policy.policy import Job
from kernel.policy.preemptive import PreemptivePolicy
from kernel.policy.queue_entry import Key, LazyHeap, QueueEntry

CEILING = 21.0  # one above the highest priority: after a long enough wait a job is more urgent than any new one
MARGIN = 1.0  # an aged job preempts a job of higher priority only if it is more urgent by this much


class _Rank:
    """The waiting jobs of one priority, by id. `since`: when one last got a slot, or the first began to wait."""

    __slots__ = ("line", "since")

    def __init__(self, since: float) -> None:
        self.line = LazyHeap()
        self.since = since


class PriorityWithAging(PreemptivePolicy):
    """`aging`: priorities that a queue gains per second of waiting. `quantum`: tokens for which a job retains its gain.

    A job of higher priority preempts immediately. An aged job must be a whole priority ahead of the job that it
    preempts, and keeps the slot for a quantum. So two jobs exchange a slot at most once in `quantum` tokens and in
    1 / `aging` seconds. A preempted job returns to its place in the queue, which its id determines. No job preempts a
    job of its own priority, or a job that has not made up for the cost of its preemption yet.
    """

    kind = "priority"

    def __init__(self, aging: float, quantum: int) -> None:
        super().__init__()
        self._aging = aging
        self._tokens = quantum
        self._ranks: dict[int, _Rank] = {}  # the waiting jobs by priority; no rank is empty

    def adopt(self, job: Job, now: float) -> None:
        super().adopt(job, now)
        self._forget_gain(self._running[job.id])  # another policy gave it the slot

    def charge_tokens(self, job: Job, tokens: int, now: float) -> None:
        super().charge_tokens(job, tokens, now)
        entry = self._running.get(job.id)
        if entry is not None and entry.overtook and entry.grant_used >= self._tokens:
            entry.overtook = False
            self._rekey(entry, now)

    def reprioritise(self, job: Job, now: float) -> None:
        if (entry := self._waiting.get(job.id)) is not None:
            self._remove_waiting(entry)
            self._add_waiting(entry, now)
        elif (entry := self._running.get(job.id)) is not None:
            entry.level = entry.job.priority
            self._forget_gain(entry)  # it was relative to the old priority
            self._rekey(entry, now)

    def queue(self) -> list[Job]:
        ranks = (self._ranks[level] for level in sorted(self._ranks, reverse=True))
        return [entry.job for rank in ranks for _, _, entry in rank.line.in_order()]

    # ---- urgency

    def _key(self, entry: QueueEntry, now: float) -> Key:
        entry.level = entry.job.priority
        return (entry.job.id,)

    def _rule(self, entry: QueueEntry, now: float) -> str:
        victim = self._victims.first()
        if victim is None:
            return f"runs higher priorities first (this call has {entry.level})"
        rule = f"runs higher priorities first (this call has {entry.level}, and the lowest on a slot is {victim.level})"
        if entry.level > victim.level:
            return f"{rule}; that call keeps its slot until it has made up for the cost of its preemption"
        if entry.level == victim.level or not self._aging:
            return f"{rule}; no call takes a slot from a call of {'its own' if self._aging else 'such a'} priority"
        gap = max(self._guard(victim) + MARGIN - self._aged(entry.level, now), 0)
        if self._aged(entry.level, now) >= CEILING:
            return f"{rule}; by waiting, calls of its priority have become as urgent as a call can be"
        seconds = gap / self._aging
        gain = f"by waiting, calls of its priority gain {self._aging:g} a second"
        return f"{rule}; {gain}, and overtake the call with the lowest in {seconds:.1f} s"

    def _victim_key(self, entry: QueueEntry) -> Key:
        return (self._urgency(entry), -entry.job.id)

    def _guard(self, entry: QueueEntry) -> float:
        """The urgency that an aged job must exceed to preempt `entry`: for one quantum the urgency at its start."""
        return entry.start_urgency if entry.grant_used < self._tokens else entry.level

    def _forget_gain(self, entry: QueueEntry) -> None:
        """Count a running job from now on as urgent as its priority, also in the rest of its quantum."""
        entry.start_urgency, entry.overtook = float(entry.level), False

    def _urgency(self, entry: QueueEntry) -> float:
        """The urgency of a running job. Its gain by aging counts only if it overtook a job of higher priority."""
        return self._guard(entry) if entry.overtook else entry.level

    def _aged(self, level: int, now: float) -> float:
        """The urgency of the queue of priority `level`."""
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
        """The least urgent running job that may stop, if `first` is more urgent; of equal jobs, the last to arrive."""
        victim = self._victims.best(self._may_stop)
        if victim is None:
            return None
        level = first.level
        if level > victim.level:
            stops = level > self._urgency(victim)
        else:
            stops = level < victim.level and self._aged(level, now) >= self._guard(victim) + MARGIN
        return victim if stops else None

    # ---- moves

    def _start(self, entry: QueueEntry, now: float) -> None:
        level = entry.level
        entry.start_urgency = self._aged(level, now)
        entry.overtook = any(other > level for other in self._ranks)
        self._ranks[level].since = now
        super()._start(entry, now)

    def _stop(self, entry: QueueEntry, now: float) -> None:
        gained = self._urgency(entry) - entry.level
        super()._stop(entry, now)
        if gained > 0:  # the job gives the slot back, so its queue is as urgent again as before it got the slot
            rank = self._ranks[entry.level]
            rank.since = min(rank.since, now - gained / self._aging)

    def _add_waiting(self, entry: QueueEntry, now: float) -> None:
        entry.key = self._key(entry, now)
        self._waiting[entry.job.id] = entry
        rank = self._ranks.get(entry.level)
        if rank is None:
            rank = self._ranks[entry.level] = _Rank(entry.since)
        rank.line.push(entry, entry.key)

    def _remove_waiting(self, entry: QueueEntry) -> None:
        del self._waiting[entry.job.id]
        line = self._ranks[entry.level].line
        line.remove(entry)
        if not len(line):
            del self._ranks[entry.level]
