"""A lean decoder for models of the Llama family: the same numbers as transformers' layers, with a tenth of the Python.

Made by `model_builder` for models whose outline says that it can, others run through transformers' own modules.
Projections that read the same input are one matrix, norms are folded into them, and the halves that a rotary embedding
turns lie side by side, so that turning is one complex product. It knows nothing of sequences:
`AttentionPlan` does attention.
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

Weights = Mapping[str, torch.Tensor]  # by the names that transformers gives them


class _Layer(NamedTuple):
    qkv: Linear
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    out: Linear
    gate_up: Linear
    down: Linear
    window: int | None


class Decoder:
    """The layers of a model, packed by `pack` from its `weights`."""

    def __init__(self, outline: ModelManifest, weights: Weights, pack: Pack) -> None:
        assert outline.lean is not None
        self._heads, self._kv_heads, self._head_dim = outline.heads, outline.kv_heads, outline.head_dim
        self._lean = outline.lean
        self._embeddings = weights["model.embed_tokens.weight"].detach()
        device, dtype = self._embeddings.device, self._embeddings.dtype
        self._floor = torch.full((1, 1), self._lean.eps, device=device, dtype=dtype)
        with torch.inference_mode():
            self._turns = self._rotations(outline.context)
            self._layers = self._all_packed(weights, outline.layers, pack)
            self._norm = weights["model.norm.weight"].detach().clone()
            self._head = pack(weights.get("lm_head.weight", self._embeddings), None)

    def __call__(
        self, plan: AttentionPlan, tokens: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor, *, states: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The logits of the rows `kept`, and the last states of all, normed, if `states`: see `forward.Network`."""
        found = self._states(plan, tokens, positions)
        if states:
            found = normed(found, self._floor) * self._norm
            return self._head(found[kept]).float(), found
        return self._head(normed(found[kept], self._floor) * self._norm).float(), None

    def _states(self, plan: AttentionPlan, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        queries, keys = self._heads * self._head_dim, self._kv_heads * self._head_dim
        turns = self._turns[positions].unsqueeze(1)
        states = embedding(tokens, self._embeddings)
        for number, layer in enumerate(self._layers):
            mixed = layer.qkv(normed(states, self._floor))
            if layer.query_norm is not None:
                self._norm_heads(mixed, layer)
            _turn(mixed[:, : queries + keys].unflatten(1, (-1, self._head_dim // 2, 2)), turns)
            plan.write(number, mixed[:, queries:])
            asked = mixed[:, :queries].unflatten(1, (self._kv_heads, -1, self._head_dim))
            states += layer.out(plan.attend(number, asked, self._lean.scale, layer.window))
            states += layer.down(gated(layer.gate_up(normed(states, self._floor))))
        return states

    def _norm_heads(self, mixed: torch.Tensor, layer: _Layer) -> None:
        """Norm each head of the queries and the keys, as Qwen3 does."""
        assert layer.key_norm is not None
        queries, keys = self._heads * self._head_dim, self._kv_heads * self._head_dim
        for part, weight in (
            (mixed[:, :queries], layer.query_norm),
            (mixed[:, queries : queries + keys], layer.key_norm),
        ):
            heads = part.unflatten(1, (-1, self._head_dim))
            heads.copy_(rms_norm(heads, (self._head_dim,), weight, self._lean.eps))

    def _rotations(self, context: int) -> torch.Tensor:
        """By how much each position turns each pair: [context, head dim / 2], complex."""
        device = self._embeddings.device
        frequencies = torch.tensor(self._lean.frequencies, device=device)
        angles = torch.outer(torch.arange(context, device=device, dtype=torch.float32), frequencies)
        return torch.complex(angles.cos() * self._lean.amplitude, angles.sin() * self._lean.amplitude)

    def _all_packed(self, weights: Weights, layers: int, pack: Pack) -> list[_Layer]:
        """Several at once: packing one uses one thread, and not the interpreter."""

        def packed(number: int) -> _Layer:
            with torch.inference_mode():  # which each thread has to say
                return self._packed(_Part(weights, number), number, pack)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return list(pool.map(packed, range(layers)))

    def _packed(self, part: _Part, number: int, pack: Pack) -> _Layer:
        turned = [self._interleaved(part, "q_proj"), self._interleaved(part, "k_proj")]
        value = part("self_attn.v_proj.weight"), part.find("self_attn.v_proj.bias")
        weights, biases = zip(*turned, value, strict=True)
        before, between = part("input_layernorm.weight"), part("post_attention_layernorm.weight")
        return _Layer(
            pack(torch.cat(weights) * before, None if biases[0] is None else torch.cat(biases)),
            self._interleaved_norm(part, "q_norm"),
            self._interleaved_norm(part, "k_norm"),
            pack(part("self_attn.o_proj.weight"), part.find("self_attn.o_proj.bias")),
            pack(torch.cat((part("mlp.gate_proj.weight"), part("mlp.up_proj.weight"))) * between, None),
            pack(part("mlp.down_proj.weight"), None),
            self._lean.windows[number],
        )

    def _interleaved_norm(self, part: _Part, name: str) -> torch.Tensor | None:
        norm = part.find(f"self_attn.{name}.weight")
        return None if norm is None else norm[_order(self._head_dim)].clone()

    def _interleaved(self, part: _Part, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weights and bias with the two numbers of a pair, half a head apart in transformers, side by side."""
        order = _order(self._head_dim)
        weight = part(f"self_attn.{name}.weight").unflatten(0, (-1, self._head_dim))[:, order].flatten(0, 1)
        bias = part.find(f"self_attn.{name}.bias")
        return weight, None if bias is None else bias.unflatten(0, (-1, self._head_dim))[:, order].flatten()


class _Part:
    """The weights of one layer."""

    def __init__(self, weights: Weights, number: int) -> None:
        self._weights = weights
        self._prefix = f"model.layers.{number}."

    def __call__(self, name: str) -> torch.Tensor:
        return self._weights[self._prefix + name]

    def find(self, name: str) -> torch.Tensor | None:
        """None if there are no such weights."""
        return self._weights.get(self._prefix + name)


def normed(rows: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """Each of `rows` [rows, size] with a mean square of 1 (RMSNorm; Zhang and Sennrich 2019), `floor` added to it.

    As few calls as there can be: in small steps they are what a norm costs.
    """
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * torch.addcmul(floor, lengths, lengths, value=1 / rows.shape[1]).rsqrt_()


def gated(rows: torch.Tensor) -> torch.Tensor:
    """Of each of `rows` [rows, 2 * size] the silu of the first half, times the second (SwiGLU; Shazeer 2020).

    By its parts, of which each gives a number the same bits anywhere: silu computes the last few of a thread's share in
    another way than the others, and which these are depends on how many rows there are.
    """
    gate, up = rows.chunk(2, dim=1)
    if rows.dtype != torch.float32:
        return silu(gate) * up
    divisor = gate.neg().exp_().add_(1)
    return torch.div(gate, divisor, out=divisor).mul_(up)


@cache
def _order(head_dim: int) -> torch.Tensor:
    """The places in a head of transformers, in our order."""
    return torch.arange(head_dim).view(2, -1).t().flatten()


def _turn(pairs: torch.Tensor, turns: torch.Tensor) -> None:
    """Turn the pairs [rows, heads, head dim / 2, 2] in place."""
    if pairs.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(turns)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * turns))
