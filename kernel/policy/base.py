"""The base of policies that keep their waiting jobs in a fixed order: the bookkeeping and the decision loop.

A subclass defines that order, the size of a grant, and which running job must make room. The decision loop calls no
driver and never sorts the waiting jobs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from kernel.policy.policy import Decision, Grant, Job, Outlook
from kernel.policy.queue_entry import PAYBACK, Key, LazyHeap, QueueEntry

SMOOTHING = 0.95  # weight of the past in the measured seconds per token
NOTHING = Decision()


class OrderedPolicy(ABC):
    """Subclasses define `_key`, and override the other hooks as needed.

    The last part of a key must make the key unique. `_token_seconds`: the observed seconds that a running job takes for
    a token; 0 until the first observation.
    """

    kind = ""
    reason = ""

    def __init__(self) -> None:
        self._line = LazyHeap()
        self._waiting: dict[int, QueueEntry] = {}
        self._running: dict[int, QueueEntry] = {}
        self._needs_grant: dict[int, QueueEntry] = {}  # running jobs that used up their grants, or got none yet
        self._started: dict[int, QueueEntry] = {}  # by the current decision; so are the next two
        self._stopped: dict[int, QueueEntry] = {}
        self._shed: list[Job] = []
        self._token_seconds = 0.0
        self._tickets = 0

    # ---- hooks of a policy

    @abstractmethod
    def _key(self, entry: QueueEntry, now: float) -> Key:
        """The place of a job in the order. Called when the job begins to wait, is preempted, or has used its grant."""

    @abstractmethod
    def _rule(self, entry: QueueEntry, now: float) -> str:
        """The `Outlook.rule` of a waiting job."""

    def _quantum(self, entry: QueueEntry) -> int:
        """The tokens of one grant; 0: no bound."""
        return 0

    def _victim(self, first: QueueEntry, now: float) -> QueueEntry | None:
        """The running job, if any, that makes room for `first`, the next waiting job, if all slots are taken."""
        return None

    def _yields_to(self, waiting: QueueEntry, running: QueueEntry) -> bool:
        """Whether `running`, when it has used its grant, gives up its slot to `waiting`."""
        return False

    def _prepare(self, now: float) -> None:  # noqa: B027
        """Called before each decision, to update what has changed with time or with the tokens made."""

    # ---- events

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def arrive(self, job: Job, now: float) -> None:
        if job.id not in self._waiting and job.id not in self._running:
            self._add_waiting(QueueEntry(job, now), now)

    def adopt(self, job: Job, now: float) -> None:
        if job.id not in self._waiting and job.id not in self._running:
            entry = QueueEntry(job, now)
            entry.key = self._key(entry, now)
            self._add_running(entry)
            self._needs_grant[job.id] = entry

    def charge_prompt(self, job: Job, tokens: int, now: float) -> None:  # noqa: B027
        """Most policies count only the tokens made, and ignore prompts."""

    def charge_tokens(self, job: Job, tokens: int, now: float) -> None:
        entry = self._running.get(job.id)
        if entry is None or tokens <= 0:
            return
        seconds = (now - entry.last) / tokens
        before = self._token_seconds
        self._token_seconds = SMOOTHING * before + (1 - SMOOTHING) * seconds if before else seconds
        entry.last = now
        entry.slot_tokens += tokens
        entry.total_tokens += tokens
        entry.grant_used += tokens
        if 0 < entry.grant <= entry.grant_used:
            self._needs_grant[job.id] = entry

    def reprioritise(self, job: Job, now: float) -> None:  # noqa: B027
        """Most policies ignore priorities."""

    def leave(self, job: Job, now: float) -> None:
        if (entry := self._waiting.get(job.id)) is not None:
            self._remove_waiting(entry)
        elif (entry := self._running.get(job.id)) is not None:
            self._remove_running(entry)

    def queue(self) -> list[Job]:
        return [entry.job for _, _, entry in self._line.in_order()]

    def running(self) -> list[Job]:
        return [entry.job for entry in self._running.values()]

    def since(self, job: Job) -> float:
        return (self._waiting.get(job.id) or self._running[job.id]).since

    def outlook(self, job: Job, now: float) -> Outlook:
        entry = self._waiting[job.id]
        yielding = [one for one in self._running.values() if one.grant and self._yields_to(entry, one)]
        first = min(yielding, key=lambda one: (one.grant - one.grant_used, one.job.id), default=None)
        if first is None:
            return Outlook(self._rule(entry, now))
        return Outlook(self._rule(entry, now), first.job, max(first.grant - first.grant_used, 0))

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
        if not (self._started or self._stopped or self._needs_grant or self._shed):
            return NOTHING
        for number, entry in self._needs_grant.items():  # these jobs keep their slots and get another grant
            entry.grant_used, entry.grant = 0, self._grant_tokens(entry)
            self._started[number] = entry
        run = [Grant(entry.job, entry.grant) for entry in self._started.values()]
        decision = Decision(run, [entry.job for entry in self._stopped.values()], self._shed)
        self._started, self._stopped, self._needs_grant, self._shed = {}, {}, {}, []
        return decision

    def _grant_tokens(self, entry: QueueEntry) -> int:
        """The tokens of a grant: a quantum, or more if preempting the job costs much; 0: no bound."""
        if not entry.job.preemptible:
            return 0
        quantum = self._quantum(entry)
        return max(quantum, round(PAYBACK * entry.job.switch_cost)) if quantum else 0

    def _first_used_up(self) -> QueueEntry | None:
        """The first running job that has used up its grant and has no other yet."""
        return next((entry for entry in self._needs_grant.values() if entry.grant), None)

    def _ticket(self) -> int:
        """A number above all earlier ones. A job with this number as its key stands behind all others."""
        self._tickets += 1
        return self._tickets

    # ---- moves

    def _first(self, now: float) -> QueueEntry | None:
        """The waiting job that runs next."""
        return self._line.first()

    def _start(self, entry: QueueEntry, now: float) -> None:
        self._remove_waiting(entry)
        entry.since = entry.last = now
        entry.slot_tokens = entry.grant_used = 0
        entry.grant = self._grant_tokens(entry)
        self._add_running(entry)
        number = entry.job.id
        if self._stopped.pop(number, None) is None or entry.grant:
            self._started[number] = entry

    def _stop(self, entry: QueueEntry, now: float) -> None:
        number = entry.job.id
        self._remove_running(entry)
        if self._started.pop(number, None) is None:  # else the job got its slot in this same decision
            self._stopped[number] = entry
        entry.since = now
        self._add_waiting(entry, now)

    def _add_running(self, entry: QueueEntry) -> None:
        self._running[entry.job.id] = entry

    def _remove_running(self, entry: QueueEntry) -> None:
        del self._running[entry.job.id]
        self._needs_grant.pop(entry.job.id, None)

    def _add_waiting(self, entry: QueueEntry, now: float) -> None:
        entry.key = self._key(entry, now)
        self._waiting[entry.job.id] = entry
        self._line.push(entry, entry.key)

    def _remove_waiting(self, entry: QueueEntry) -> None:
        del self._waiting[entry.job.id]
        self._line.remove(entry)
