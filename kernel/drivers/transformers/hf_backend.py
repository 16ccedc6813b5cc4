"""Runs a model through transformers' own modules, with our attention plugged in by transformers' attention interface.

Used for models that the decoder cannot run, and at each load through transformers: `check` compares packed steps with
the model's own attention. It is never imported for other loads, because it imports transformers' modelling code.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface

from kernel.drivers.transformers.attention import AttentionPlan, Span
from kernel.drivers.transformers.forward import PackedForward
from kernel.drivers.transformers.kv import KVMemory

NAME = "llmosd"
# Arguments of some attentions that `attend` does not support, and the features that pass them.
UNSUPPORTED = {
    "softcap": "softcap (a limit of its scores)",
    "s_aux": "s_aux (sinks)",
    "position_bias": "position_bias (scores that depend on the distance)",
}

# The plan of the running step. An argument would not reach the attention of each model: some layers drop arguments that
# they do not know.
_running: ContextVar[AttentionPlan] = ContextVar("running plan")
# During `check`, the window that each layer has asked for.
_windows: ContextVar[dict[int, int | None] | None] = ContextVar("windows by layer", default=None)


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
        step = _running.set(plan)
        try:
            found = self._model(
                input_ids=tokens[None],
                position_ids=positions[None],
                logits_to_keep=logit_rows,
                output_hidden_states=states,
                use_cache=False,
            )
        finally:
            _running.reset(step)
        return found.logits[0].float(), found.hidden_states[-1][0] if states else None


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls in each layer. Returns [1, tokens, heads, head dim] and None.

    `query` is [1, heads, tokens, head dim]; `key` and `value` have kv heads instead of heads. Raises
    NotImplementedError for a kind of attention that is not supported.
    """
    for name, feature in UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {feature} is not supported")
    if getattr(module, "is_causal", True) is False:
        raise NotImplementedError("its tokens also attend to later tokens, so it cannot generate text")
    if key.shape != value.shape:
        raise NotImplementedError("keys and values of different sizes are not supported")
    plan, windows = _running.get(), _windows.get()
    kv_heads, tokens, head_dim = key.shape[1:]
    if windows is not None:
        windows[module.layer_idx] = sliding_window
        geometry = plan.memory.geometry
        if (kv_heads, head_dim) != (geometry.heads, geometry.head_dim):
            raise NotImplementedError(
                f"layer {module.layer_idx} has {kv_heads} kv heads of {head_dim} numbers, and its configuration says "
                f"{geometry.heads} of {geometry.head_dim}"
            )
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
    windows: dict[int, int | None] = {}
    recording = _windows.set(windows)
    try:
        forward([Span(other, tokens[3:], logits=0), Span(one, tokens[:3], logits=0)])
        forward([Span(one, tokens[3:5], logits=0)])
        packed = forward([Span(other, tokens[:1]), Span(one, tokens[5:], generated=True)]).logits[1].float()
        written = memory.tokens(one, 0, len(tokens)).ne(0).any(dim=(1, 2))
    finally:
        _windows.reset(recording)
        memory.free(one)
        memory.free(other)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        own = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits[0, -1].float()
    model.set_attn_implementation(NAME)
    if not own.isfinite().all():
        raise NotImplementedError("some of its own logits are not finite")
    if not written.all():
        raise NotImplementedError("its attention is part of its own code, so the driver cannot replace it")
    expected = windows_of(model.config.get_text_config(), memory.capacity)
    for layer, window in windows.items():
        if min(window or memory.capacity, memory.capacity) != (expected[layer] or memory.capacity):
            raise NotImplementedError(
                f"layer {layer} has an attention window of {window} tokens, and by its configuration {expected[layer]}"
            )
    if not packed.isfinite().all():
        raise NotImplementedError('its numbers exceed the type of its weights here; set the option dtype = "float32"')
    if not torch.all((packed - own).abs() <= tolerance * own.abs().max()):
        raise NotImplementedError("packed steps give other logits than its own attention")


def windows_of(config: Any, context: int) -> list[int | None]:
    """The attention window of each layer by `config`, as the caches of transformers read it; None from `context` on.

    `check` compares it with the windows that the layers ask for, because its text is shorter than most windows. Some
    models have windows only in their masks, which the driver does not use.
    """
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    window = window if window is not None and window < context else None
    if kinds is None:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


AttentionInterface.register(NAME, attend)
