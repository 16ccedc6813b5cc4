"""First come, first served: jobs run in order of arrival until they finish, and none is preempted.

Silberschatz, Galvin, Gagne, "Operating System Concepts", 5.3.1. Agent frameworks do this, and the other policies are
measured against it. Nothing starves as long as the running jobs finish.
"""

from __future__ import annotations

from kernel.policy.base import OrderedPolicy
from kernel.policy.queue_entry import Key, QueueEntry


class Fifo(OrderedPolicy):
    """Orders jobs by id, which counts up in order of arrival."""

    kind = "fifo"

    def _key(self, entry: QueueEntry, now: float) -> Key:
        return (entry.job.id,)
