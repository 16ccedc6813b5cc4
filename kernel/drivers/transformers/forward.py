"""One packed forward pass: the next tokens of many sequences in a single row through the model.

Called by the engine once per step, and at load by `modules.check`. It runs a `Decoder` where there is one, else
transformers' own modules.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from kernel.drivers.transformers.attention import AttentionPlan, SafeLengths, Span
from kernel.drivers.transformers.batch_invariance import RowCounts
from kernel.drivers.transformers.kv import KVMemory


class ForwardOutput(NamedTuple):
    """What a step computed.

    `logits` [those asked for, vocabulary] are in the order of spans and tokens. `hidden` has the last states of the
    tokens of each span that asked for them, [tokens, size].
    """

    logits: torch.Tensor
    hidden: list[torch.Tensor]


class Network(Protocol):
    """A model's layers and head. Answers logits [kept, vocabulary] and, if `states`, the last states of all rows."""

    def __call__(
        self, plan: AttentionPlan, tokens: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor, *, states: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]: ...


class PackedForward:
    """`counts`: rows are padded to them, None never. `lengths`: see `AttentionPlan`."""

    def __init__(
        self, network: Network, memory: KVMemory, counts: RowCounts | None = None, lengths: SafeLengths | None = None
    ) -> None:
        self._network = network
        self._memory = memory
        self._counts = counts
        self._lengths = lengths or SafeLengths()

    def __call__(self, spans: list[Span]) -> ForwardOutput:
        """Run `spans`; the slabs grow if it succeeds."""
        with torch.inference_mode():
            plan = AttentionPlan(spans, self._memory, self._lengths)
            tokens, positions = (self._tensor(self._pad(values)) for values in (plan.tokens, plan.positions))
            wanted = [row for span in spans if span.logits for row in plan.rows(span)[-span.logits :]]
            kept = self._tensor(self._pad(wanted))
            asking = [span for span in spans if span.hidden]
            logits, states = self._network(plan, tokens, positions, kept, states=bool(asking))
            hidden = []
            for span in asking:
                assert states is not None
                hidden.append(states[self._tensor(plan.rows(span))].float())
        for span in spans:
            span.slab.length = span.end
        return ForwardOutput(logits[: len(wanted)], hidden)

    def _pad(self, values: list[int]) -> list[int]:
        """`values`, and zeros up to a safe count."""
        if self._counts is None or not values:
            return values
        return values + [0] * (self._counts.padded(len(values)) - len(values))

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._memory.device)
