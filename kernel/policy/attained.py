"""Least attained service by scheduling group: calls of the group that has received the least service run first.

Luo et al., "Autellix: An Efficient Serving Engine for LLM Agents as General Programs", 2025, section 4.2 (PLAS). The
length of a call is unknown, but the service that its group has received so far is a good guess of how much will
follow. So a short task does not wait behind the calls of long tasks that came earlier. Starved calls are promoted
(`multilevel.py`). It stores no service: the group does.
"""

from __future__ import annotations

from kernel.policy.multilevel import MultilevelPolicy
from kernel.policy.queue_entry import QueueEntry


class AttainedService(MultilevelPolicy):
    """`quantum` is the width of the first level, in tokens of service of all calls of a group together."""

    kind = "attained"

    def _attained(self, entry: QueueEntry) -> float:
        return entry.job.group.service
