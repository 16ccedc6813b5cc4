"""Attention over packed sequences: transformers calls it in every layer in place of its own.

A step is one row of tokens, cut into spans, one per sequence; each span attends to its own slab alone. Known to
transformers as "llmosd", for which it builds no mask. It changes no length: `forward` does, when all layers are done.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from kernel.drivers.transformers.kv import Slab

NAME = "llmosd"
UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # what some models have transformers pass, and this cannot do


class Span:
    """The next `tokens` of one sequence, as one step runs them; `last`: its logits after the last one are wanted."""

    __slots__ = ("_masks", "end", "last", "slab", "start", "tokens")

    def __init__(self, slab: Slab, tokens: list[int], last: bool = True) -> None:
        self.slab = slab
        self.tokens = tokens
        self.last = last
        self.start = slab.length
        self.end = slab.length + len(tokens)
        self._masks: dict[int, torch.Tensor] = {}

    def mask(self, first: int, window: int | None, device: torch.device) -> torch.Tensor:
        """[tokens, keys from `first` on], true where a token may look. Built once per window."""
        found = self._masks.get(window or 0)
        if found is None:
            queries = torch.arange(self.start, self.end, device=device).unsqueeze(1)
            keys = torch.arange(first, self.end, device=device)
            found = keys <= queries
            if window is not None:
                found &= keys > queries - window
            self._masks[window or 0] = found
        return found


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    *,
    spans: list[Span],
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of one layer. `query` is [1, heads, tokens, head dim], `key` and `value` have the kv heads.

    Answers [1, tokens, heads, head dim]. Writes the new keys and values to the slabs. Raises NotImplementedError for
    a kind of attention that it does not have.
    """
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    layer: int = module.layer_idx
    kv_heads, head_dim = key.shape[1], key.shape[3]
    fresh = torch.stack((key, value))
    # For single tokens, one call cuts all: [2, 1, kv heads, head dim] each, and [1, kv heads, group, head dim]. The
    # query heads that share a kv head become rows of it: no copy of keys, and no mask.
    columns = fresh.unbind(3)
    queries = query[0].transpose(0, 1).unflatten(1, (kv_heads, -1)).unsqueeze(1).unbind(0)
    results = []
    position = 0
    for span in spans:
        memory, count = span.slab.layers[layer], len(span.tokens)
        first = 0 if sliding_window is None else max(0, span.start + 1 - sliding_window)
        seen = memory.narrow(3, first, span.end - first)
        if count == 1:
            memory.select(3, span.start).copy_(columns[position])
            keys, values = seen.unbind(0)
            results.append(scaled_dot_product_attention(queries[position], keys, values, scale=scaling))
        else:
            memory.narrow(3, span.start, count).copy_(fresh.narrow(3, position, count))
            keys, values = seen.unbind(0)
            rows = query.narrow(2, position, count)
            out = _prefill(span, rows, keys, values, first, scaling, sliding_window)
            results.append(out[0].transpose(0, 1).unflatten(1, (kv_heads, -1)))
        position += count
    return torch.cat(results).view(1, position, -1, head_dim), None


def _prefill(
    span: Span,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    first: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    whole = span.start == 0 and (window is None or span.end <= window)
    mask = None if whole else span.mask(first, window, queries.device)
    return scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=whole, scale=scaling, enable_gqa=True
    )


AttentionInterface.register(NAME, attend)
