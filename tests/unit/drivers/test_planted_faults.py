"""The trials of exactness find faults: each fault here is planted, and the trials must find it.

They run on the pretended machine of `tests/support/sensitive_machine.py`. On a real one, a fault may make no
difference: with AVX-512, say, prompts and generated tokens get the same bits up to some 400 tokens of context.
"""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")
pytest.importorskip("llguidance", reason="constraints are compiled by llguidance (extra `local`)")

from kernel.drivers.protocol import Admit  # noqa: E402
from kernel.drivers.transformers import pages, radix, sampler, swap_format  # noqa: E402
from kernel.drivers.transformers.attention import TILE, AttentionPlan, SafeLengths, Span, _Tile  # noqa: E402
from kernel.drivers.transformers.batch_invariance import RowCounts  # noqa: E402
from kernel.drivers.transformers.kv import UNIT, Slab  # noqa: E402
from kernel.drivers.transformers.kv_allocator import KVAllocator  # noqa: E402
from kernel.drivers.transformers.queries import EmbeddedText  # noqa: E402
from kernel.drivers.transformers.request import EngineRequest  # noqa: E402
from kernel.drivers.transformers.sequence import EngineSequence  # noqa: E402
from tests.support.random_calls import alone, answer_alone, codec, model_of, prompt_of, sampling_of  # noqa: E402
from tests.support.sensitive_machine import MODEL, SAFE_MULTIPLE, pretend  # noqa: E402
from tests.support.tiny import Kernel  # noqa: E402
from tests.support.trials import Trial  # noqa: E402

SEEDS = range(40)  # tried until one shows the fault

Plant = Callable[[pytest.MonkeyPatch], None]


def lengths_not_padded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SafeLengths, "padded", lambda self, count: -(-count // UNIT) * UNIT)


def rows_not_padded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RowCounts, "padded", lambda self, count: count)


def forced_tokens_run_as_a_prompt(patch: pytest.MonkeyPatch) -> None:
    def span(self: EngineSequence, slab: Slab, tokens: list[int]) -> Span:
        whole = slab.length + len(tokens) == len(self.tokens)
        return Span(slab, tokens, logits=int(whole), generated=len(tokens) == 1 and slab.length >= self.prompt)

    patch.setattr(EngineSequence, "_span", span)


def tiles_where_chunks_begin(patch: pytest.MonkeyPatch) -> None:
    real = AttentionPlan._add_prompt

    def add(self: AttentionPlan, span: Span, writes: list[int]) -> None:
        before = len(self._tiles)
        real(self, span, writes)
        del self._tiles[before:]
        row = self._row_of[id(span), 0]
        for start in range(0, len(span.tokens), TILE):
            end = min(start + TILE, len(span.tokens))
            self._tiles.append(_Tile(row + start, row + end, span.slab.index, span.start + start, 0))

    patch.setattr(AttentionPlan, "_add_prompt", add)


def noise_that_goes_on(patch: pytest.MonkeyPatch) -> None:
    generator = random.Random(1)
    patch.setattr(sampler, "uniform", lambda seed, position: generator.random())


def states_rounded_on_disk(patch: pytest.MonkeyPatch) -> None:
    real = swap_format.read
    patch.setattr(swap_format, "read", lambda *arguments: real(*arguments).bfloat16().float())


def shared_pages_written_through(patch: pytest.MonkeyPatch) -> None:
    real = pages._map

    def share(address: Any, size: int, flags: int, descriptor: int, offset: int) -> int:
        if descriptor >= 0:
            flags = flags & ~mmap.MAP_PRIVATE | mmap.MAP_SHARED
        return real(address, size, flags, descriptor, offset)

    patch.setattr(pages, "_map", share)


def states_of_a_text_summed_as_they_come(patch: pytest.MonkeyPatch) -> None:
    def add_states(self: EmbeddedText, states: Any) -> None:
        self._sum = states.sum(0) if self._sum is None else self._sum + states.sum(0)

    patch.setattr(EmbeddedText, "add_states", add_states)


def texts_that_are_taken_for_longer_than_they_are(patch: pytest.MonkeyPatch) -> None:
    real = radix.common
    patch.setattr(radix, "common", lambda one, other: min(real(one, other) + 1, len(one), len(other)))


def generated_keys_kept(patch: pytest.MonkeyPatch) -> None:
    real = KVAllocator.computed

    def computed(self: KVAllocator, request: EngineRequest, before: int) -> None:
        real(self, request, before)
        if request.slab is not None and request.done > request.prompt:
            self.cache.insert(request.slab, request.tokens[: request.done], request.process)

    patch.setattr(KVAllocator, "computed", computed)


FAULTS: list[Plant] = [
    lengths_not_padded,
    rows_not_padded,
    forced_tokens_run_as_a_prompt,
    tiles_where_chunks_begin,
    noise_that_goes_on,
    states_rounded_on_disk,
    shared_pages_written_through,
    states_of_a_text_summed_as_they_come,
    texts_that_are_taken_for_longer_than_they_are,
]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)


def caught(plant: Plant, folder: Path, seeds: range = SEEDS) -> Iterator[str]:
    """The differences that trials find with a fault planted."""
    for seed in seeds:
        trial = Trial(seed, MODEL, folder)
        for call in trial.calls.values():
            alone(MODEL, call.number)
        for number in trial.others.values():
            answer_alone(MODEL, number)
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            yield from trial.run()


@pytest.mark.parametrize("plant", FAULTS)
def test_a_planted_fault_is_seen(plant: Plant, tmp_path: Path) -> None:
    assert next(caught(plant, tmp_path), None) is not None


def test_without_a_fault_nothing_is_seen(tmp_path: Path) -> None:
    assert next(caught(lambda patch: None, tmp_path, range(5)), None) is None


def test_the_measurements_find_what_is_unsafe_on_the_machine() -> None:
    model = model_of(MODEL)
    assert model.counts.safe
    assert not [count for count in model.counts.safe if count % 2]
    assert model.lengths.safe
    assert not [length for length in model.lengths.safe if length % SAFE_MULTIPLE]


@pytest.mark.parametrize("plant", [lambda patch: None, generated_keys_kept])
def test_generated_keys_that_are_kept_for_the_next_turn_are_seen(monkeypatch: pytest.MonkeyPatch, plant: Plant) -> None:
    first = Admit(1, prompt_of(20), sampling_of(20), 1000)
    tokens = codec().encode(prompt_of(20)) + list(alone(MODEL, 20).ids)
    turn = Admit(2, "", sampling_of(22), 1000, [*tokens, *codec().encode(" and the next")])
    expected = Kernel(model_of(MODEL), codec()).run(turn)
    plant(monkeypatch)
    kernel = Kernel(model_of(MODEL), codec()).run(first).run(turn)
    same = (kernel.ids[2], kernel.logprobs[2]) == (expected.ids[2], expected.logprobs[2])
    assert same == (plant is not generated_keys_kept)
