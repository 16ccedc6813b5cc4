"""One packed forward pass: the next tokens of many sequences in a single row through the model.

Called by the engine once per step, and once at load by `check`, which compares it with the model's own attention.
"""

from __future__ import annotations

from typing import Any

import torch

from kernel.drivers.transformers.attention import NAME, Span
from kernel.drivers.transformers.kv import KVMemory


class PackedForward:
    """A causal language model of transformers, loaded with the attention of `attention.NAME`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._device = model.device

    def __call__(self, spans: list[Span]) -> torch.Tensor:
        """Run `spans`; answers [spans with `last`, vocabulary] logits, in order. The slabs grow if it succeeds."""
        tokens = [token for span in spans for token in span.tokens]
        positions = [position for span in spans for position in range(span.start, span.end)]
        kept = []
        count = 0
        for span in spans:
            count += len(span.tokens)
            if span.last:
                kept.append(count - 1)
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor([tokens], device=self._device),
                position_ids=torch.tensor([positions], device=self._device),
                logits_to_keep=torch.tensor(kept, dtype=torch.long, device=self._device),
                use_cache=False,
                spans=spans,
            ).logits[0]
        for span in spans:
            span.slab.length = span.end
        return logits


def check(model: Any, memory: KVMemory) -> None:
    """Raise NotImplementedError unless packed, chunked steps give the logits of the model's own attention.

    Some models have state besides keys and values, or attention of a kind that `attend` does not know: better refused
    at load than wrong later.
    """
    forward = PackedForward(model)
    tokens = [token % model.config.get_text_config().vocab_size for token in (11, 7, 5, 3, 2, 13)]
    one, other = memory.allocate(len(tokens)), memory.allocate(len(tokens))
    try:
        forward([Span(other, tokens[3:], last=False), Span(one, tokens[:3], last=False)])
        forward([Span(one, tokens[3:5], last=False)])
        packed = forward([Span(other, tokens[:1]), Span(one, tokens[5:])])[1].float()
    finally:
        memory.free(one)
        memory.free(other)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        own = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits[0, -1].float()
    model.set_attn_implementation(NAME)
    tolerance = (1e-3 if model.dtype == torch.float32 else 5e-2) * own.abs().max()
    if not torch.all((packed - own).abs() <= tolerance):
        raise NotImplementedError("its own attention gives other logits")
