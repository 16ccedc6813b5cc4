"""Attention over packed sequences gives the numbers of a naive one, which runs token by token in double precision.

Steps are random mixes of chunked prompts, generated tokens, and forced tokens that were generated before, in slabs at
random places, with and without windows.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="attention works on tensors (extra `local`)")

from kernel.drivers.transformers.attention import BLOCK, TILE, AttentionPlan, SafeLengths, Span  # noqa: E402
from kernel.drivers.transformers.kv import UNIT, Geometry, KVMemory  # noqa: E402

HEAD_DIM = 8
CONTEXT = 1400
LAYERS = 2
SCALE = HEAD_DIM**-0.5
LENGTHS = [
    SafeLengths(),
    SafeLengths((BLOCK,)),
    SafeLengths((96, 416)),
    SafeLengths(()),
]  # all lengths are safe, one, few, none


class Step:
    """A random step: spans over slabs that hold some tokens already, and the keys, values and queries of its rows."""

    def __init__(self, seed: int, group: int, lengths: SafeLengths) -> None:
        self.random = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        self.heads = self.random.choice([1, 2, 3])
        geometry = Geometry(LAYERS, self.heads, HEAD_DIM, torch.float32)
        self.memory = KVMemory(geometry, lengths.padded(CONTEXT), 14, torch.device("cpu"), 1 << 40)
        slabs = [self.memory.allocate(0) for _ in range(14)]
        self.random.shuffle(slabs)
        self.spans = [self._span(slab) for slab in slabs[: self.random.randint(1, 9)]]
        for slab in slabs:  # fill the memory beyond its end, which no token may see
            held = self.memory.tokens(slab, 0, CONTEXT)
            held.copy_(torch.randn(held.shape, generator=generator) * 3)
        self.plan = AttentionPlan(self.spans, self.memory, lengths)
        self.rows = self.plan.count + self.random.choice([0, 0, 3])
        self.fresh = torch.randn(LAYERS, self.rows, geometry.row, generator=generator)
        self.queries = torch.randn(LAYERS, self.rows, self.heads, group, HEAD_DIM, generator=generator)

    def _span(self, slab: Any) -> Span:
        kind = self.random.choice(["prompt", "generated", "generated", "forced"])
        count = {
            "prompt": self.random.choice([1, 5, TILE, 40, 70]),
            "generated": 1,
            "forced": self.random.randint(2, 6),
        }
        slab.length = self.random.choice([0, 1, 17, 31, 32, 126, 127, 128, 200, 300, 511, 512, 513, 700, 1023, 1300])
        tokens = [self.random.randrange(1000) for _ in range(count.get(kind, 1))]
        return Span(slab, tokens, generated=kind != "prompt")

    def attended(self, layer: int, window: int | None) -> Any:
        self.plan.write(layer, self.fresh[layer])
        return self.plan.attend(layer, self.queries[layer], SCALE, window)

    def naive(self, layer: int, window: int | None) -> Any:
        """The same, token by token."""
        found = torch.zeros(self.rows, self.queries.shape[2] * self.queries.shape[3] * HEAD_DIM, dtype=torch.float64)
        for span in self.spans:
            held = self.memory.tokens(span.slab, 0, CONTEXT)[layer].double()
            for offset, row in enumerate(self.plan.rows(span)):
                held[span.start + offset] = self.fresh[layer, row].double()
            both = held.view(CONTEXT, 2, self.heads, HEAD_DIM)
            for offset, row in enumerate(self.plan.rows(span)):
                end = span.start + offset + 1
                seen = both[max(0, end - window) if window else 0 : end]
                queries = self.queries[layer, row].double()
                scores = torch.einsum("hgd,thd->hgt", queries, seen[:, 0]) * SCALE
                found[row] = torch.einsum("hgt,thd->hgd", scores.softmax(-1), seen[:, 1]).flatten()
        return found


@pytest.mark.parametrize("group", range(1, 9))
@settings(max_examples=8)
@given(st.integers(0, 2**32), st.sampled_from(LENGTHS), st.sampled_from([None, None, 1, 7, 100]))
def test_any_mix_of_prompts_and_generated_tokens_sees_what_it_may(
    group: int, seed: int, lengths: SafeLengths, window: int | None
) -> None:
    step = Step(seed, group, lengths)
    for layer in range(LAYERS):
        expected = step.naive(layer, window)
        assert torch.allclose(step.attended(layer, window).double(), expected, atol=1e-5)
        for span in step.spans:  # the new keys and values are where the next step reads them
            held = step.memory.tokens(span.slab, span.start, span.end)[layer]
            assert torch.equal(held, step.fresh[layer, step.plan.rows(span)])


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from(LENGTHS))
def test_a_plan_has_a_row_for_every_token_at_its_position(seed: int, lengths: SafeLengths) -> None:
    step = Step(seed, 1, lengths)
    rows = [row for span in step.spans for row in step.plan.rows(span)]
    assert sorted(rows) == list(range(step.plan.count))
    for span in step.spans:
        assert [step.plan.tokens[row] for row in step.plan.rows(span)] == span.tokens
        assert [step.plan.positions[row] for row in step.plan.rows(span)] == list(range(span.start, span.end))


@settings(max_examples=25)
@given(st.integers(0, 2**32))
def test_tiles_begin_at_absolute_positions_and_batches_at_evenly_spaced_slabs(seed: int) -> None:
    step = Step(seed, 1, SafeLengths())
    for tile in step.plan._tiles:
        assert tile.position % TILE == 0
        assert 0 <= tile.offset < TILE
        assert tile.offset + tile.end - tile.start <= TILE
    queries = {row: (span.slab.index, step.plan.positions[row]) for span in step.spans for row in step.plan.rows(span)}
    for batch in step.plan._batches:
        slabs = [queries[row][0] for row in range(batch.start, batch.end)]
        assert slabs == [batch.first_slab + batch.stride * place for place in range(len(slabs))]
        assert max(queries[row][1] for row in range(batch.start, batch.end)) < batch.length
        assert batch.length <= step.memory.capacity


def test_generated_tokens_of_neighbouring_slabs_are_one_batch() -> None:
    memory = KVMemory(Geometry(1, 1, HEAD_DIM, torch.float32), 512, 32, torch.device("cpu"), 1 << 30)
    slabs = [memory.allocate(0) for _ in range(32)]
    for place, slab in enumerate(slabs):
        slab.length = 100 if place % 2 else 250
    plan = AttentionPlan([Span(slab, [1], generated=True) for slab in slabs], memory, SafeLengths())
    assert [(batch.first_slab, batch.stride, batch.end - batch.start) for batch in plan._batches] == [
        (1, 2, 16),
        (0, 2, 16),
    ]


def test_where_no_length_is_safe_every_generated_token_goes_by_itself() -> None:
    memory = KVMemory(Geometry(1, 1, HEAD_DIM, torch.float32), 512, 8, torch.device("cpu"), 1 << 30)
    plan = AttentionPlan([Span(memory.allocate(0), [1, 2], generated=True) for _ in range(8)], memory, SafeLengths(()))
    assert [batch.end - batch.start for batch in plan._batches] == [1] * 16


@given(st.sets(st.sampled_from(range(UNIT, BLOCK + 1, UNIT))).map(sorted))
def test_a_padded_length_is_the_smallest_safe_one_that_is_enough(safe: list[int]) -> None:
    lengths = SafeLengths(tuple(safe))
    allowed = sorted(blocks * BLOCK + last for blocks in range(6) for last in safe or range(UNIT, BLOCK + 1, UNIT))
    for count in (1, 2, UNIT, UNIT + 1, 383, BLOCK - 1, BLOCK, BLOCK + 1, 1000, 1024, 2047):
        assert lengths.padded(count) == next(length for length in allowed if length >= count)
    padded = [lengths.padded(count) for count in range(1, 1500)]
    assert all(one <= other for one, other in pairwise(padded))
