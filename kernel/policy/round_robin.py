"""Round robin: each runs for a quantum of tokens, and then goes to the back of the line if anybody waits.

Silberschatz, Galvin, Gagne, "Operating System Concepts", 5.3.3, with tokens for time. Nobody waits longer than for one
quantum of each that is before it in the line, shared by the slots.
"""

from __future__ import annotations

from kernel.policy.base import OrderedPolicy
from kernel.policy.queue_entry import Key, QueueEntry


class RoundRobin(OrderedPolicy):
    """`quantum` in tokens; a job whose preemption costs something gets a longer one."""

    kind = "round_robin"

    def __init__(self, quantum: int) -> None:
        super().__init__()
        self._tokens = quantum

    def _key(self, entry: QueueEntry, now: float) -> Key:
        return (self._turn(),)

    def _quantum(self, entry: QueueEntry) -> int:
        return self._tokens

    def _victim(self, first: QueueEntry, now: float) -> QueueEntry | None:
        return self._spent_one()
