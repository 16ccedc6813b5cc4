"""One packed forward pass: the next tokens of many sequences in a single row through the model.

Called by the engine once per step, and at load by `check`, which compares it with the model's own attention. It runs a
`Decoder` where there is one, else transformers' modules with our attention put in by its attention interface.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from transformers import AttentionInterface

from kernel.drivers.transformers.attention import Lengths, Plan, Span
from kernel.drivers.transformers.invariance import RowCounts
from kernel.drivers.transformers.kv import KVMemory

NAME = "llmosd"
UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # what some models have transformers pass, and this cannot do


class Output(NamedTuple):
    """What a step computed: `logits` [those asked for, vocabulary] in the order of spans and tokens, and for each span
    that asked for them the last states of its tokens, [tokens, size]."""

    logits: torch.Tensor
    hidden: list[torch.Tensor]


class Network(Protocol):
    """A model's layers and head. Answers logits [kept, vocabulary] and, if `states`, the last states of all rows."""

    def __call__(
        self, plan: Plan, tokens: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor, *, states: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]: ...


class PackedForward:
    """`counts`: rows are padded to them, None never. `lengths`: see `Plan`."""

    def __init__(
        self, network: Network, memory: KVMemory, counts: RowCounts | None = None, lengths: Lengths | None = None
    ) -> None:
        self._network = network
        self._memory = memory
        self._counts = counts
        self._lengths = lengths or Lengths()

    def __call__(self, spans: list[Span]) -> Output:
        """Run `spans`; the slabs grow if it succeeds."""
        with torch.inference_mode():
            plan = Plan(spans, self._memory, self._lengths)
            tokens, positions = (self._tensor(self._pad(values)) for values in (plan.tokens, plan.positions))
            wanted = [row for span in spans if span.logits for row in plan.rows(span)[-span.logits :]]
            kept = self._tensor(self._pad(wanted))
            asking = [span for span in spans if span.hidden]
            logits, states = self._network(plan, tokens, positions, kept, states=bool(asking))
            hidden = []
            for span in asking:
                assert states is not None
                hidden.append(states[self._tensor(plan.rows(span))].float())
        for span in spans:
            span.slab.length = span.end
        return Output(logits[: len(wanted)], hidden)

    def _pad(self, values: list[int]) -> list[int]:
        """`values`, and zeros up to a safe count."""
        if self._counts is None or not values:
            return values
        return values + [0] * (self._counts.padded(len(values)) - len(values))

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._memory.device)


class Modules:
    """A causal language model of transformers, loaded with the attention of `NAME`, as a `Network`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(
        self, plan: Plan, tokens: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor, *, states: bool
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
    plan: Plan,
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
