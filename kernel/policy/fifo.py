"""First come, first served: who came first runs until it is done, and nobody is preempted.

Silberschatz, Galvin, Gagne, "Operating System Concepts", 5.3.1. What the agent frameworks do, and the measure of all
others. Nobody starves, as long as those who run come to an end.
"""

from __future__ import annotations

from kernel.policy.base import OrderedPolicy
from kernel.policy.queue_entry import Key, QueueEntry


class Fifo(OrderedPolicy):
    """By id, which counts up in the order of coming."""

    kind = "fifo"

    def _key(self, entry: QueueEntry, now: float) -> Key:
        return (entry.job.id,)
