"""What those policies share that take a slot away before its grant is used: which of those that run goes first.

It looks at those that it moves, and at those whose preemption does not pay yet.
"""

from __future__ import annotations

from kernel.policy.base import OrderedPolicy
from kernel.policy.queue_entry import Key, LazyHeap, QueueEntry


class PreemptivePolicy(OrderedPolicy):
    """Who runs keeps the key with which it waited, until it has used its grant. The one with the greatest goes first.

    None goes before it has made up for what its preemption costs, so that two jobs cannot push each other out for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self._victims = LazyHeap()  # those that run and can stop

    def _last(self, entry: QueueEntry) -> Key:
        """Its place among those that run: the least one goes first."""
        return tuple(-part for part in entry.key)

    def _beats(self, first: QueueEntry, running: QueueEntry) -> bool:
        """Whether the first in the line is to have the slot of one that runs."""
        return first.key < running.key

    def _victim(self, first: QueueEntry, now: float) -> QueueEntry | None:
        worst = self._victims.first()
        if worst is None or not self._beats(first, worst):
            return None
        if self._may_go(worst):
            return worst
        return self._victims.best(lambda one: self._may_go(one) and self._beats(first, one))

    def _may_go(self, running: QueueEntry) -> bool:
        return running.paid_back or (running.grant > 0 and running.job.id in self._spent)

    def _rekey(self, running: QueueEntry, now: float) -> None:
        """One that runs has another place from now on."""
        running.key = self._key(running, now)
        if running.job.preemptible:
            self._victims.remove(running)
            self._victims.push(running, self._last(running))

    def _runs(self, entry: QueueEntry) -> None:
        super()._runs(entry)
        if entry.job.preemptible:
            self._victims.push(entry, self._last(entry))

    def _runs_no_more(self, entry: QueueEntry) -> None:
        super()._runs_no_more(entry)
        if entry.job.preemptible:
            self._victims.remove(entry)
