"""A model run by transformers' own modules, with our attention put in by transformers' attention interface.

For models that the lean decoder cannot stand for, and at load for `check`, which compares packed steps with the model's
own attention. Imported only then: it brings transformers' modelling code with it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from kernel.drivers.transformers.attention import AttentionPlan, Span
from kernel.drivers.transformers.forward import PackedForward
from kernel.drivers.transformers.kv import KVMemory

NAME = "llmosd"
UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # what some models have transformers pass, and this cannot do


class HFBackend:
    """A causal language model of transformers, loaded with the attention of `NAME`, as a `Network`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(
        self, plan: AttentionPlan, tokens: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor, *, states: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        found = self._model(
            input_ids=tokens[None],
            position_ids=positions[None],
            logits_to_keep=kept,
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
    """Attention as transformers calls it. `query` is [1, heads, tokens, head dim], `key` and `value` have the kv heads.

    Answers [1, tokens, heads, head dim]. Raises NotImplementedError for a kind of attention that it does not have.
    """
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    kv_heads, tokens, head_dim = key.shape[1:]
    fresh = torch.cat((key, value)).permute(2, 0, 1, 3).reshape(tokens, -1)
    plan.write(module.layer_idx, fresh)
    asked = query[0].transpose(0, 1).unflatten(1, (kv_heads, -1))
    found = plan.attend(module.layer_idx, asked, scaling or head_dim**-0.5, sliding_window)
    return found.view(1, tokens, -1, head_dim), None


def check(model: Any, forward: PackedForward, memory: KVMemory, tolerance: float) -> None:
    """Raise NotImplementedError unless packed, chunked steps give the logits of the model's own attention.

    Some models have state besides keys and values, or attention of a kind that `attend` does not know: better refused
    at load than wrong later. `tolerance`: of the largest logit.
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
