"""Least attained service by scheduling group: calls of the group that has received the least service run first.

Luo et al., "Autellix: An Efficient Serving Engine for LLM Agents as General Programs", 2025, section 4.2 (PLAS). The
length of a call is unknown, but the service of its group so far suggests it. So a short
task does not wait behind earlier long calls, and the next call of any task ranks by the service of the task instead of
by its arrival. Starved calls are promoted.
"""

from __future__ import annotations

from kernel.policy.multilevel import MultilevelPolicy
from kernel.policy.queue_entry import QueueEntry


class AttainedService(MultilevelPolicy):
    """`quantum` is the width of the first level, in tokens of service of all calls of a group together."""

    kind = "attained"

    def _attained(self, entry: QueueEntry) -> float:
        return entry.job.group.service
