"""Skip-join multi-level feedback: a call sinks by what it has made, and starts at the level its prompt deserves.

Wu et al., "Fast Distributed Inference Serving for Large Language Models" (FastServe), 2023, section 4.1. A call that
is read for longer than a level lasts would only be demoted there at once: it joins below. Who used up its level is
demoted; who is starved is promoted (`levels.py`), and nobody starves.
"""

from __future__ import annotations

from kernel.policy.group import PROMPT_WEIGHT
from kernel.policy.multilevel import LEVELS, MultilevelPolicy
from kernel.policy.queue_entry import QueueEntry


class SkipJoinFeedback(MultilevelPolicy):
    """`quantum` is the width of the first level, in tokens; a token of a prompt takes half of one that is made."""

    kind = "mlfq"

    def _attained(self, entry: QueueEntry) -> float:
        if entry.joined < 0:
            entry.joined = self._joined(entry.job.prompt * PROMPT_WEIGHT)
        return entry.joined + entry.served

    def _joined(self, first: float) -> float:
        """Where the level begins that is wide enough for a first step of so many tokens' time."""
        level = 0
        while level < LEVELS - 1 and self._width << level < first:
            level += 1
        return float(self._width * ((1 << level) - 1))
