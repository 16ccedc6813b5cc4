"""The facts about a model besides its weights: its sizes, and the parameters that the decoder needs to run it.

`weights` takes these facts from a model that transformers has loaded, and stores them in the cache. A start that finds
them there never imports transformers' modelling code, because this import takes longer than the rest of the start.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import torch

# The classes of transformers that the decoder can run, if their configuration fits.
FAMILY = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}


class DecoderManifest(msgspec.Struct, frozen=True):
    """The parameters that the decoder needs.

    `windows` has the attention window of each layer, in tokens; None means that a token attends to all before it. For
    each pair of a head, `frequencies` has the angle in radians between two adjacent positions; `amplitude` scales the
    rotated pairs. `eps` is added to the mean square in norms; `scale` multiplies attention scores.
    """

    eps: float
    scale: float
    windows: list[int | None]
    frequencies: list[float]
    amplitude: float


class ModelManifest(msgspec.Struct, frozen=True):
    """The sizes of a model, its special tokens, and its decoder.

    `shapes` are the shapes of its matrices, as they run: [outputs, inputs] each. `ends` are the token ids that end a
    text. `decoder` is None for a model that needs transformers' own modules.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    context: int
    parameters: int
    ends: list[int]
    shapes: list[tuple[int, int]]
    decoder: DecoderManifest | None = msgspec.field(name="lean")  # the name in files of the cache


def manifest_of(model: Any) -> ModelManifest:
    """The manifest of `model`, a causal language model of transformers."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    decoder = _decoder_manifest(model) if _fits_decoder(model) else None
    return ModelManifest(
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        parameters=model.num_parameters(),
        ends=sorted(ids(model.generation_config.eos_token_id) | ids(config.eos_token_id)),
        shapes=_shapes(model, decoder is not None),
        decoder=decoder,
    )


def ids(known: int | Iterable[int] | None) -> set[int]:
    """The ids in `known`, a setting of transformers that may be one id, several ids, or None."""
    if known is None:
        return set()
    return {known} if isinstance(known, int) else set(known)


def _fits_decoder(model: Any) -> bool:
    """Whether the decoder can run `model`."""
    config = model.config
    if type(model).__name__ not in FAMILY or config.hidden_act != "silu" or model.lm_head.bias is not None:
        return False
    if any(layer.mlp.down_proj.bias is not None for layer in model.model.layers):
        return False
    return bool(2 * model.model.rotary_emb.inv_freq.numel() == model.model.layers[0].self_attn.head_dim)


def _decoder_manifest(model: Any) -> DecoderManifest:
    config, rotary = model.config, model.model.rotary_emb
    of_all = config.sliding_window if config.model_type == "mistral" else None
    layers = [layer.self_attn for layer in model.model.layers]
    return DecoderManifest(
        eps=config.rms_norm_eps,
        scale=layers[0].scaling,
        windows=[getattr(attention, "sliding_window", of_all) for attention in layers],
        frequencies=rotary.inv_freq.tolist(),
        amplitude=float(rotary.attention_scaling),
    )


def _shapes(model: Any, decoder: bool) -> list[tuple[int, int]]:
    """The shape of each matrix, without repetitions. With `decoder`, matrices that read the same input are fused."""
    if not decoder:
        return [
            *dict.fromkeys(tuple(layer.weight.shape) for layer in model.modules() if type(layer) is torch.nn.Linear)
        ]
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    fused = ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj))
    together = [(sum(part.weight.shape[0] for part in parts), parts[0].weight.shape[1]) for parts in fused]
    alone = [tuple(layer.weight.shape) for layer in (attention.o_proj, mlp.down_proj, model.lm_head)]
    return [*dict.fromkeys(together + alone)]
