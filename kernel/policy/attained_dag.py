"""Least attained service along the critical path: for tasks whose calls form a graph rather than a chain.

Luo et al., "Autellix", 2025, section 4.2 (ATLAS). The total service of a group would put a task with many parallel
calls behind a task with one long chain. This policy counts the service along the longest chain of calls that led to a
call, plus the tokens that the call has made itself: an estimate of how far the task has come along its critical path.
So parallel calls at the same step of a task rank equally.
"""

from __future__ import annotations

from kernel.policy.multilevel import MultilevelPolicy
from kernel.policy.queue_entry import QueueEntry


class AttainedPath(MultilevelPolicy):
    """`quantum` is the width of the first level, in tokens along the critical path."""

    kind = "attained_dag"

    def _attained(self, entry: QueueEntry) -> float:
        return entry.job.critical_path + entry.total_tokens
