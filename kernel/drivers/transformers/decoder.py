"""A lean decoder for models of the Llama family: the same numbers as transformers' layers, with a tenth of the Python.

Made by `weights` for models that it `supports`, others run through transformers' own modules. Projections that read the
same input are one matrix, norms are folded into them, and the halves that a rotary embedding turns lie side by side, so
that turning is one complex product. It knows nothing of sequences: `Plan` does attention.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.functional import embedding, rms_norm, silu

from kernel.drivers.transformers.attention import Plan
from kernel.drivers.transformers.linear import Linear, Pack

FAMILY = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}


class _Layer(NamedTuple):
    qkv: Linear
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    out: Linear
    gate_up: Linear
    down: Linear
    window: int | None


def supports(model: Any) -> bool:
    """Whether the decoder can stand for `model`, one of transformers with its weights."""
    config = model.config
    if type(model).__name__ not in FAMILY or config.hidden_act != "silu" or model.lm_head.bias is not None:
        return False
    if any(layer.mlp.down_proj.bias is not None for layer in model.model.layers):
        return False
    cosines, _ = model.model.rotary_emb(torch.zeros(1), torch.zeros(1, 1, dtype=torch.long))
    return bool(cosines.shape[-1] == model.model.layers[0].self_attn.head_dim)


class Decoder:
    """The layers of `model`, packed by `pack`. `context`: the most tokens of a sequence."""

    def __init__(self, model: Any, pack: Pack, context: int) -> None:
        config = model.config
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._head_dim: int = model.model.layers[0].self_attn.head_dim
        self._eps: float = config.rms_norm_eps
        self._floor = torch.full((1, 1), self._eps, device=model.device, dtype=model.dtype)
        self._window: int | None = config.sliding_window if config.model_type == "mistral" else None  # of all layers
        self._scale: float = model.model.layers[0].self_attn.scaling
        self._embeddings = model.model.embed_tokens.weight.detach()
        with torch.inference_mode():
            self._turns = self._rotations(model.model.rotary_emb, context)
            self._layers = [self._packed(layer, pack) for layer in model.model.layers]
            self._norm = model.model.norm.weight.detach().clone()
            self._head = pack(model.lm_head.weight, None)

    def __call__(
        self, plan: Plan, tokens: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor, *, states: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The logits of the rows `kept`, and the last states of all, normed, if `states`: see `forward.Network`."""
        found = self._states(plan, tokens, positions)
        if states:
            found = normed(found, self._floor) * self._norm
            return self._head(found[kept]).float(), found
        return self._head(normed(found[kept], self._floor) * self._norm).float(), None

    def _states(self, plan: Plan, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
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
            states += layer.out(plan.attend(number, asked, self._scale, layer.window))
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
            heads.copy_(rms_norm(heads, (self._head_dim,), weight, self._eps))

    def _rotations(self, rotary: Any, context: int) -> torch.Tensor:
        """By how much each position turns each pair: [context, head dim / 2], complex."""
        positions = torch.arange(context, device=self._embeddings.device).unsqueeze(0)
        cosines, sines = rotary(torch.zeros(1, device=self._embeddings.device), positions)
        half = self._head_dim // 2
        return torch.complex(cosines[0, :, :half].float(), sines[0, :, :half].float())

    def _packed(self, layer: Any, pack: Pack) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        turned = [self._interleaved(attention.q_proj), self._interleaved(attention.k_proj)]
        weights, biases = zip(*turned, (attention.v_proj.weight, attention.v_proj.bias), strict=True)
        before, between = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        return _Layer(
            pack(torch.cat(weights) * before, None if biases[0] is None else torch.cat(biases)),
            self._interleaved_norm(attention, "q_norm"),
            self._interleaved_norm(attention, "k_norm"),
            pack(attention.o_proj.weight, attention.o_proj.bias),
            pack(torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)) * between, None),
            pack(mlp.down_proj.weight, None),
            getattr(attention, "sliding_window", self._window),
        )

    def _interleaved_norm(self, attention: Any, name: str) -> torch.Tensor | None:
        norm = getattr(attention, name, None)
        return None if norm is None else norm.weight[_order(self._head_dim)].clone()

    def _interleaved(self, projection: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weights and bias with the two numbers of a pair, half a head apart in transformers, side by side."""
        order = _order(self._head_dim)
        weight = projection.weight.unflatten(0, (-1, self._head_dim))[:, order].flatten(0, 1)
        bias = projection.bias
        return weight, None if bias is None else bias.unflatten(0, (-1, self._head_dim))[:, order].flatten()


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


def _order(head_dim: int) -> torch.Tensor:
    """The places in a head of transformers, in our order."""
    return torch.arange(head_dim).view(2, -1).t().flatten()


def _turn(pairs: torch.Tensor, turns: torch.Tensor) -> None:
    """Turn the pairs [rows, heads, head dim / 2, 2] in place."""
    if pairs.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(turns)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * turns))
