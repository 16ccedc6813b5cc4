"""One packed forward pass: the next tokens of many sequences run through the model together, each token as one row.

The engine calls it once per step, and `hf_backend.check` at load. Its network is a `Decoder` if that can run the model,
else an `HFBackend`. It never decides which sequences run.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from kernel.drivers.transformers.attention import AttentionPlan, SafeLengths, Span
from kernel.drivers.transformers.batch_invariance import RowCounts
from kernel.drivers.transformers.kv import KVMemory


class ForwardOutput(NamedTuple):
    """The result of a step.

    `logits` [requested rows, vocabulary] are in the order of the spans and of their tokens. `hidden` has a tensor
    [tokens, size] of last hidden states for each span that requested them.
    """

    logits: torch.Tensor
    hidden: list[torch.Tensor]


class Network(Protocol):
    """A model's layers and head.

    A call returns the logits of `logit_rows`, [logit rows, vocabulary], and, if `states` is set, the last hidden states
    of all rows.
    """

    def __call__(
        self,
        plan: AttentionPlan,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        logit_rows: torch.Tensor,
        *,
        states: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]: ...


class PackedForward:
    """The forward pass of one model over one KV memory.

    The rows of a step are padded to a count in `row_counts`, if given, and the context of generated tokens to a length
    in `safe_lengths`.
    """

    def __init__(
        self,
        network: Network,
        memory: KVMemory,
        row_counts: RowCounts | None = None,
        safe_lengths: SafeLengths | None = None,
    ) -> None:
        self._network = network
        self._memory = memory
        self._row_counts = row_counts
        self._safe_lengths = safe_lengths or SafeLengths()

    def __call__(self, spans: list[Span]) -> ForwardOutput:
        """Run `spans`. On success, the lengths of their slabs include the new tokens."""
        with torch.inference_mode():
            plan = AttentionPlan(spans, self._memory, self._safe_lengths)
            tokens, positions = (self._tensor(self._pad(values)) for values in (plan.tokens, plan.positions))
            wanted = [row for span in spans if span.logits for row in plan.rows(span)[-span.logits :]]
            logit_rows = self._tensor(self._pad(wanted))
            asking = [span for span in spans if span.hidden]
            logits, states = self._network(plan, tokens, positions, logit_rows, states=bool(asking))
            hidden = []
            for span in asking:
                assert states is not None
                hidden.append(states[self._tensor(plan.rows(span))].float())
        for span in spans:
            span.slab.length = span.end
        return ForwardOutput(logits[: len(wanted)], hidden)

    def _pad(self, values: list[int]) -> list[int]:
        """`values`, padded with zeros to a safe count of rows."""
        if self._row_counts is None or not values:
            return values
        return values + [0] * (self._row_counts.padded(len(values)) - len(values))

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._memory.device)
