"""Least attained service by program: the calls of whoever has had least so far go first.

Luo et al., "Autellix: An Efficient Serving Engine for LLM Agents as General Programs", 2025, section 4.2 (PLAS). A call
is a stranger; its program is not: what the program has had so far says how long it probably is. A short one is not held
up by the long calls before it, nor a long one's next call by its having come late. With the promotion of the starved.
"""

from __future__ import annotations

from kernel.policy.multilevel import MultilevelPolicy
from kernel.policy.queue_entry import QueueEntry


class AttainedService(MultilevelPolicy):
    """`quantum` is the width of the first level, in tokens that all calls of a program have had together."""

    kind = "attained"

    def _attained(self, entry: QueueEntry) -> float:
        return entry.job.group.service
