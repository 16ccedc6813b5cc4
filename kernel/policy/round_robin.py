"""Round robin: each job runs for a quantum of tokens, then goes to the back of the queue if another job waits.

Silberschatz, Galvin, Gagne, "Operating System Concepts", 5.3.3, with tokens instead of time. A job waits at most for
one quantum of each job that is ahead of it in the queue, divided by the number of slots. It ignores priorities.
"""

from __future__ import annotations

from kernel.policy.base import OrderedPolicy
from kernel.policy.queue_entry import Key, QueueEntry


class RoundRobin(OrderedPolicy):
    """`quantum` in tokens. A job whose preemption is expensive gets a longer grant."""

    kind = "round_robin"

    def __init__(self, quantum: int) -> None:
        super().__init__()
        self._tokens = quantum

    def _key(self, entry: QueueEntry, now: float) -> Key:
        return (self._ticket(),)

    def _quantum(self, entry: QueueEntry) -> int:
        return self._tokens

    def _rule(self, entry: QueueEntry, now: float) -> str:
        return f"takes a slot away after {self._tokens} tokens if another call waits"

    def _yields_to(self, waiting: QueueEntry, running: QueueEntry) -> bool:
        return True

    def _victim(self, first: QueueEntry, now: float) -> QueueEntry | None:
        return self._first_used_up()
