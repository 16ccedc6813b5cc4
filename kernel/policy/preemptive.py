"""The base of policies that may preempt a job before it has used its grant: it chooses which running job to preempt.

Called by the decision loop of `OrderedPolicy`. Apart from the job that it preempts, it examines only jobs that have not
made up for the cost of their preemption yet. It never orders the waiting jobs.
"""

from __future__ import annotations

from kernel.policy.base import OrderedPolicy
from kernel.policy.queue_entry import Key, LazyHeap, QueueEntry


class PreemptivePolicy(OrderedPolicy):
    """The running job with the greatest key is preempted first. Its key is the one with which it waited for its slot.

    No job is preempted before it has made up for the cost of its preemption or has used its grant, so that two jobs
    cannot displace each other forever.
    """

    def __init__(self) -> None:
        super().__init__()
        self._victims = LazyHeap()  # the running jobs that can be preempted

    def _victim_key(self, entry: QueueEntry) -> Key:
        """The place of a job among the running jobs: the smallest is preempted first."""
        return tuple(-part for part in entry.key)

    def _beats(self, first: QueueEntry, running: QueueEntry) -> bool:
        """Whether `first`, the next waiting job, may take the slot of `running`."""
        return first.key < running.key

    def _victim(self, first: QueueEntry, now: float) -> QueueEntry | None:
        worst = self._victims.first()
        if worst is None or not self._beats(first, worst):
            return None
        if self._may_stop(worst):
            return worst
        return self._victims.best(lambda one: self._may_stop(one) and self._beats(first, one))

    def _may_stop(self, running: QueueEntry) -> bool:
        return running.switch_paid or (running.grant > 0 and running.job.id in self._needs_grant)

    def _rekey(self, running: QueueEntry, now: float) -> None:
        """Compute the key of a running job again, and move the job to its new place."""
        running.key = self._key(running, now)
        if running.job.preemptible:
            self._victims.remove(running)
            self._victims.push(running, self._victim_key(running))

    def _add_running(self, entry: QueueEntry) -> None:
        super()._add_running(entry)
        if entry.job.preemptible:
            self._victims.push(entry, self._victim_key(entry))

    def _remove_running(self, entry: QueueEntry) -> None:
        super()._remove_running(entry)
        if entry.job.preemptible:
            self._victims.remove(entry)
