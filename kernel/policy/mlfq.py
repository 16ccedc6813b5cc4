"""Skip-join multi-level feedback: a call sinks as it makes tokens, and starts at a level that suits its prompt.

Wu et al., "Fast Distributed Inference Serving for Large Language Models" (FastServe), 2023, section 4.1. A call whose
prompt takes longer than the first level is wide would be demoted immediately, so it joins at a lower level. A call that
uses up its level is demoted. A starved call is promoted (`multilevel.py`), so no call starves. It knows no groups.
"""

from __future__ import annotations

from kernel.policy.group import PROMPT_WEIGHT
from kernel.policy.multilevel import LEVELS, MultilevelPolicy
from kernel.policy.queue_entry import QueueEntry


class SkipJoinFeedback(MultilevelPolicy):
    """`quantum` is the width of the first level, in tokens; a prompt token counts as half a token made."""

    kind = "mlfq"

    def _attained(self, entry: QueueEntry) -> float:
        if entry.initial_service < 0:
            entry.initial_service = self._initial_service(entry.job.prompt * PROMPT_WEIGHT)
        return entry.initial_service + entry.total_tokens

    def _initial_service(self, prompt: float) -> float:
        """The service at which the highest level begins that is wide enough for `prompt`.

        `prompt` is the cost of the prompt in tokens made.
        """
        level = 0
        while level < LEVELS - 1 and self._width << level < prompt:
            level += 1
        return float(self._width * ((1 << level) - 1))
