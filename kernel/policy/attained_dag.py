"""Least attained service along the critical path: for programs whose calls are a graph rather than a chain.

Luo et al., "Autellix", 2025, section 4.2 (ATLAS). The sum over a program would put a wide one behind a long one though
its calls run side by side. What counts is the longest chain of calls that led to this one, and what it has made itself:
an estimate of how far its program is along its critical path. Calls on the same step of a program so stand together.
"""

from __future__ import annotations

from kernel.policy.multilevel import MultilevelPolicy
from kernel.policy.queue_entry import QueueEntry


class AttainedPath(MultilevelPolicy):
    """`quantum` is the width of the first level, in tokens along the path."""

    kind = "attained_dag"

    def _attained(self, entry: QueueEntry) -> float:
        return entry.job.critical_path + entry.served
