"""First come, first served: jobs run in order of arrival until they finish, and no job is preempted.

Silberschatz, Galvin, Gagne, "Operating System Concepts", 5.3.1. Agent frameworks schedule like
this, so it is the baseline for the other policies. No job starves as long as the running jobs finish.
"""

from __future__ import annotations

from kernel.policy.base import OrderedPolicy
from kernel.policy.queue_entry import Key, QueueEntry


class Fifo(OrderedPolicy):
    """Orders jobs by id, which counts up in order of arrival."""

    kind = "fifo"

    def _key(self, entry: QueueEntry, now: float) -> Key:
        return (entry.job.id,)

    def _rule(self, entry: QueueEntry, now: float) -> str:
        return "runs calls in the order of arrival, and takes no slot away"
