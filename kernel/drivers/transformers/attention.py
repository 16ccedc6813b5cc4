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
    _, heads, total, head_dim = query.shape
    result = query.new_empty(1, total, heads, head_dim)
    position = 0
    for span in spans:
        end = position + len(span.tokens)
        keys, values = span.slab.keys[layer], span.slab.values[layer]
        keys[:, span.start : span.end] = key[0, :, position:end]
        values[:, span.start : span.end] = value[0, :, position:end]
        first = 0 if sliding_window is None else max(0, span.start + 1 - sliding_window)
        keys, values = keys[None, :, first : span.end], values[None, :, first : span.end]
        queries = query[:, :, position:end]
        if end - position == 1:
            # The query heads that share a kv head become rows of it: no copy of keys, and no mask for a single token.
            grouped = queries.reshape(1, keys.shape[1], -1, head_dim)
            out = scaled_dot_product_attention(grouped, keys, values, scale=scaling)
            result[0, position] = out.view(heads, head_dim)
        else:
            out = _prefill(span, queries, keys, values, first, scaling, sliding_window)
            result[0, position:end] = out[0].transpose(0, 1)
        position = end
    return result, None


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
