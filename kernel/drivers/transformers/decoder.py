"""A decoder for models of the Llama family: it computes what transformers' layers do, with a tenth of the Python code.

`model_builder` makes a decoder if the manifest of the model allows it; other models run through transformers' own
modules. Projections that read the same input are fused into one matrix, into which the norm weights are folded. The two
numbers of each rotary pair lie side by side, so that a rotation is one complex product. The decoder never knows
sequences: `AttentionPlan` computes attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import torch
from torch.nn.functional import embedding, rms_norm, silu

from kernel.drivers.transformers.attention import AttentionPlan
from kernel.drivers.transformers.linear import Linear, Pack
from kernel.drivers.transformers.model_manifest import ModelManifest

Weights = Mapping[str, torch.Tensor]  # by their names in transformers


class _Layer(NamedTuple):
    qkv: Linear
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    out: Linear
    gate_up: Linear
    down: Linear
    window: int | None


class Decoder:
    """The layers and the head of a model. `pack` packs each matrix of its `weights`."""

    def __init__(self, manifest: ModelManifest, weights: Weights, pack: Pack) -> None:
        assert manifest.decoder is not None
        self._heads, self._kv_heads, self._head_dim = manifest.heads, manifest.kv_heads, manifest.head_dim
        self._spec = manifest.decoder
        self._embeddings = weights["model.embed_tokens.weight"].detach()
        device, dtype = self._embeddings.device, self._embeddings.dtype
        self._epsilon = torch.full((1, 1), self._spec.eps, device=device, dtype=dtype)
        with torch.inference_mode():
            self._rotations = self._rotation_table(manifest.context)
            self._layers = self._pack_layers(weights, manifest.layers, pack)
            self._norm = weights["model.norm.weight"].detach().clone()
            self._head = pack(weights["lm_head.weight"], None)

    def __call__(
        self,
        plan: AttentionPlan,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        logit_rows: torch.Tensor,
        *,
        states: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The logits of `logit_rows` and, if `states`, the normed last hidden states of all rows; see `Network`."""
        found = self._states(plan, tokens, positions)
        if states:
            found = normed(found, self._epsilon) * self._norm
            return self._head(found[logit_rows]).float(), found
        return self._head(normed(found[logit_rows], self._epsilon) * self._norm).float(), None

    def _states(self, plan: AttentionPlan, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        queries, keys = self._heads * self._head_dim, self._kv_heads * self._head_dim
        rotations = self._rotations[positions].unsqueeze(1)
        states = embedding(tokens, self._embeddings)
        for number, layer in enumerate(self._layers):
            qkv = layer.qkv(normed(states, self._epsilon))
            if layer.query_norm is not None:
                self._norm_heads(qkv, layer)
            _rotate(qkv[:, : queries + keys].unflatten(1, (-1, self._head_dim // 2, 2)), rotations)
            plan.write(number, qkv[:, queries:])
            layer_queries = qkv[:, :queries].unflatten(1, (self._kv_heads, -1, self._head_dim))
            states += layer.out(plan.attend(number, layer_queries, self._spec.scale, layer.window))
            states += layer.down(gated(layer.gate_up(normed(states, self._epsilon))))
        return states

    def _norm_heads(self, qkv: torch.Tensor, layer: _Layer) -> None:
        """Norm each head of the queries and the keys, as Qwen3 does."""
        assert layer.key_norm is not None
        queries, keys = self._heads * self._head_dim, self._kv_heads * self._head_dim
        for part, weight in (
            (qkv[:, :queries], layer.query_norm),
            (qkv[:, queries : queries + keys], layer.key_norm),
        ):
            heads = part.unflatten(1, (-1, self._head_dim))
            heads.copy_(rms_norm(heads, (self._head_dim,), weight, self._spec.eps))

    def _rotation_table(self, context: int) -> torch.Tensor:
        """For each position and each pair, the complex factor of the rotation: [context, head dim / 2]."""
        device = self._embeddings.device
        frequencies = torch.tensor(self._spec.frequencies, device=device)
        angles = torch.outer(torch.arange(context, device=device, dtype=torch.float32), frequencies)
        return torch.complex(angles.cos() * self._spec.amplitude, angles.sin() * self._spec.amplitude)

    def _pack_layers(self, weights: Weights, layers: int, pack: Pack) -> list[_Layer]:
        """Pack several layers in parallel: to pack one layer uses one thread, and releases the GIL."""

        def packed(number: int) -> _Layer:
            with torch.inference_mode():  # the mode must be set in each thread
                return self._pack_layer(_LayerWeights(weights, number), number, pack)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return list(pool.map(packed, range(layers)))

    def _pack_layer(self, part: _LayerWeights, number: int, pack: Pack) -> _Layer:
        turned = [self._interleaved(part, "q_proj"), self._interleaved(part, "k_proj")]
        value = part("self_attn.v_proj.weight"), part.find("self_attn.v_proj.bias")
        weights, biases = zip(*turned, value, strict=True)
        input_norm, mlp_norm = part("input_layernorm.weight"), part("post_attention_layernorm.weight")
        return _Layer(
            pack(torch.cat(weights) * input_norm, None if biases[0] is None else torch.cat(biases)),
            self._interleaved_norm(part, "q_norm"),
            self._interleaved_norm(part, "k_norm"),
            pack(part("self_attn.o_proj.weight"), part.find("self_attn.o_proj.bias")),
            pack(torch.cat((part("mlp.gate_proj.weight"), part("mlp.up_proj.weight"))) * mlp_norm, None),
            pack(part("mlp.down_proj.weight"), None),
            self._spec.windows[number],
        )

    def _interleaved_norm(self, part: _LayerWeights, name: str) -> torch.Tensor | None:
        norm = part.find(f"self_attn.{name}.weight")
        return None if norm is None else norm[_interleaved_order(self._head_dim)].clone()

    def _interleaved(self, part: _LayerWeights, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weights and bias, ordered so that the two numbers of a pair are adjacent, and not half a head apart."""
        order = _interleaved_order(self._head_dim)
        weight = part(f"self_attn.{name}.weight").unflatten(0, (-1, self._head_dim))[:, order].flatten(0, 1)
        bias = part.find(f"self_attn.{name}.bias")
        return weight, None if bias is None else bias.unflatten(0, (-1, self._head_dim))[:, order].flatten()


class _LayerWeights:
    """The weights of one layer."""

    def __init__(self, weights: Weights, number: int) -> None:
        self._weights = weights
        self._prefix = f"model.layers.{number}."

    def __call__(self, name: str) -> torch.Tensor:
        return self._weights[self._prefix + name]

    def find(self, name: str) -> torch.Tensor | None:
        """The weights called `name`, or None if the layer has none."""
        return self._weights.get(self._prefix + name)


def normed(rows: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
    """Scale each of `rows` [rows, size] to a mean square of 1 (RMSNorm; Zhang and Sennrich 2019).

    `epsilon`, [1, 1], is added to the mean square. The function makes as few torch calls as possible, because in small
    steps a norm costs little more than these calls.
    """
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * torch.addcmul(epsilon, norms, norms, value=1 / rows.shape[1]).rsqrt_()


def gated(rows: torch.Tensor) -> torch.Tensor:
    """The silu of the first half of each of `rows` [rows, 2 * size], times its second half (SwiGLU; Shazeer 2020).

    In float32 the silu is computed from elementary operations, whose result for a number does not depend on its place.
    torch's silu computes the last few numbers of each thread's share differently, and the count of rows decides which
    numbers these are.
    """
    gate, up = rows.chunk(2, dim=1)
    if rows.dtype != torch.float32:
        return silu(gate) * up
    divisor = gate.neg().exp_().add_(1)
    return torch.div(gate, divisor, out=divisor).mul_(up)


@cache
def _interleaved_order(head_dim: int) -> torch.Tensor:
    """For each place in a head here, the place of the same number in a head of transformers."""
    return torch.arange(head_dim).view(2, -1).t().flatten()


def _rotate(pairs: torch.Tensor, rotations: torch.Tensor) -> None:
    """Rotate the pairs [rows, heads, head dim / 2, 2] in place."""
    if pairs.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(rotations)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * rotations))
