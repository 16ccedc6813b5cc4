"""Runs a model through transformers' own modules, with our attention plugged in by transformers' attention interface.

Used for models that the decoder cannot run, and at each load through transformers: `check` compares packed steps with
the model's own attention. It is never imported for other loads, because it imports transformers' modelling code.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from kernel.drivers.transformers.attention import AttentionPlan, Span
from kernel.drivers.transformers.forward import PackedForward
from kernel.drivers.transformers.kv import KVMemory

NAME = "llmosd"
UNSUPPORTED = (
    "softcap",
    "s_aux",
    "position_bias",
)  # arguments of some attentions that `attend` does not support


class HFBackend:
    """A `Network` that runs a causal language model of transformers, which uses the attention called `NAME`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(
        self,
        plan: AttentionPlan,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        logit_rows: torch.Tensor,
        *,
        states: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        found = self._model(
            input_ids=tokens[None],
            position_ids=positions[None],
            logits_to_keep=logit_rows,
            output_hidden_states=states,
            use_cache=False,
            plan=plan,
        )
        return found.logits[0].float(), found.hidden_states[-1][0] if states else None


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    *,
    plan: AttentionPlan,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls in each layer. Returns [1, tokens, heads, head dim] and None.

    `query` is [1, heads, tokens, head dim]; `key` and `value` have kv heads instead of heads. Raises
    NotImplementedError for a kind of attention that is not supported.
    """
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name} is not supported")
    kv_heads, tokens, head_dim = key.shape[1:]
    fresh = torch.cat((key, value)).permute(2, 0, 1, 3).reshape(tokens, -1)
    plan.write(module.layer_idx, fresh)
    queries = query[0].transpose(0, 1).unflatten(1, (kv_heads, -1))
    found = plan.attend(module.layer_idx, queries, scaling or head_dim**-0.5, sliding_window)
    return found.view(1, tokens, -1, head_dim), None


def check(model: Any, forward: PackedForward, memory: KVMemory, tolerance: float) -> None:
    """Raise NotImplementedError if packed, chunked steps give other logits than the model's own attention.

    Some models have state besides their KV cache, or a kind of attention that `attend` does not support. They must be
    refused at load instead of generating wrong tokens later. `tolerance` is a share of the largest logit.
    """
    tokens = [token % model.config.get_text_config().vocab_size for token in (11, 7, 5, 3, 2, 13)]
    one, other = memory.allocate(len(tokens)), memory.allocate(len(tokens))
    try:
        forward([Span(other, tokens[3:], logits=0), Span(one, tokens[:3], logits=0)])
        forward([Span(one, tokens[3:5], logits=0)])
        packed = forward([Span(other, tokens[:1]), Span(one, tokens[5:], generated=True)]).logits[1].float()
    finally:
        memory.free(one)
        memory.free(other)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        own = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits[0, -1].float()
    model.set_attn_implementation(NAME)
    if not torch.all((packed - own).abs() <= tolerance * own.abs().max()):
        raise NotImplementedError("its own attention gives other logits")


AttentionInterface.register(NAME, attend)
