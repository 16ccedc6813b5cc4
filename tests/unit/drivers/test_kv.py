"""KV memory: slabs that no other sequence reads, prefixes that several slabs share, and the accounting of both.

Most tests run on mapped pages and, as on other devices, on plain memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="keys and values are tensors (extra `local`)")

from kernel.drivers.transformers.kv import UNIT, Geometry, KVMemory, Slab  # noqa: E402
from kernel.drivers.transformers.pages import PAGE  # noqa: E402
from tests.support.resident import memory_of  # noqa: E402

GEOMETRY = Geometry(layers=3, heads=2, head_dim=16, dtype=torch.float32)  # 256 bytes of a token: 16 to a page
ODD = Geometry(layers=2, heads=3, head_dim=20, dtype=torch.float32)  # 480 bytes: pages do not end where tokens do
HALF = Geometry(layers=2, heads=1, head_dim=16, dtype=torch.bfloat16)
CAPACITY = 128
PLACES = ["mapped", "plain"]


def make(place: str, geometry: Geometry = GEOMETRY, capacity: int = CAPACITY, slabs: int = 8) -> KVMemory:
    with pytest.MonkeyPatch.context() as patch:
        if place == "plain":
            patch.setattr(sys, "platform", "elsewhere")
        memory = KVMemory(geometry, capacity, slabs, torch.device("cpu"), sys.maxsize)
    assert (memory._range is None) == (place == "plain")
    return memory


def written(memory: KVMemory, length: int, seed: int = 0) -> Slab:
    """A slab with some numbers in its first `length` tokens."""
    slab = memory.allocate(length)
    numbers(memory, slab, 0, length, seed)
    slab.length = length
    return slab


def numbers(memory: KVMemory, slab: Slab, start: int, end: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = memory.tokens(slab, start, end)
    tokens.copy_(torch.randn(tokens.shape, generator=generator))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("geometry", [GEOMETRY, ODD, HALF])
def test_every_layer_of_a_slab_begins_at_the_same_place_in_a_page(place: str, geometry: Geometry) -> None:
    memory = make(place, geometry, capacity=100)
    assert memory.capacity >= 100
    assert memory.capacity % UNIT == 0
    assert memory.capacity * geometry.row_bytes % PAGE == 0


@pytest.mark.parametrize("place", PLACES)
def test_a_new_slab_is_zero_and_so_is_one_that_was_used_before(place: str) -> None:
    memory = make(place)
    slab = written(memory, CAPACITY)
    memory.free(slab)
    slabs = [memory.allocate(0) for _ in range(8)]
    assert not any(memory.tokens(slab, 0, CAPACITY).any() for slab in slabs)
    assert memory.free_slabs == 0


@pytest.mark.parametrize("place", PLACES)
def test_rows_tokens_and_batches_are_views_of_the_same(place: str) -> None:
    memory = make(place)
    slabs = [written(memory, CAPACITY, seed) for seed in range(8)]
    fresh = torch.randn(2, GEOMETRY.row)
    where = [memory.row_of(slabs[3], 5), memory.row_of(slabs[6], 0)]
    for rows in memory.rows:
        rows.index_copy_(0, torch.tensor(where), fresh)
    assert torch.equal(memory.tokens(slabs[3], 5, 6)[:, 0], fresh[:1].expand(3, -1))
    for layer in range(3):
        for first, apart, count in ((0, 1, 8), (1, 3, 3), (6, 1, 1), (2, 0, 4)):
            keys, values = memory.batch(layer, first, apart, count, 40)
            for place_in_batch in range(count):
                slab = slabs[first + apart * place_in_batch]
                own = memory.tokens(slab, 0, 40)[layer].view(40, 2, GEOMETRY.heads, GEOMETRY.head_dim)
                assert torch.equal(keys[place_in_batch].transpose(0, 1), own[:, 0])
                assert torch.equal(values[place_in_batch].transpose(0, 1), own[:, 1])


def test_the_layout_is_a_key_and_a_value_of_every_head_for_each_token() -> None:
    memory = make("mapped")
    slab = memory.allocate(1)
    memory.tokens(slab, 4, 5)[1] = torch.arange(GEOMETRY.row, dtype=torch.float32)
    keys, values = memory.batch(1, slab.index, 0, 1, 5)
    assert torch.cat((keys[0, :, 4].flatten(), values[0, :, 4].flatten())).tolist() == list(range(GEOMETRY.row))


@st.composite
def _cuts(draw: Callable[..., Any]) -> tuple[list[int], int]:
    """The places where a prompt was cut into prefixes, copied one after another, and the length that is used."""
    cuts = sorted(draw(st.sets(st.integers(1, CAPACITY - 8), min_size=1, max_size=4)))
    return cuts, draw(st.integers(1, cuts[-1]))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("geometry", [GEOMETRY, ODD, HALF])
@settings(max_examples=25)
@given(_cuts(), st.integers(0, 5))
def test_a_prefix_is_used_at_any_token_and_belongs_to_whoever_writes(
    place: str, geometry: Geometry, cuts: tuple[list[int], int], more: int
) -> None:
    ends, used = cuts
    memory = make(place, geometry)
    source = written(memory, CAPACITY, seed=1)
    expected = memory.tokens(source, 0, CAPACITY).clone()
    prefixes = [memory.copy_prefix(source, start, end) for start, end in zip([0, *ends], ends, strict=False)]
    memory.free(source)
    slabs = [memory.allocate(0), memory.allocate(0)]
    for slab in slabs:
        for prefix in prefixes:
            if prefix.start < used:
                memory.map_prefix(slab, prefix, prefix.start, min(used, prefix.end))
    own = [torch.randn(geometry.layers, more, geometry.row).to(geometry.dtype) for _ in slabs]
    for slab, fresh in zip(slabs, own, strict=True):
        memory.tokens(slab, used, used + more).copy_(fresh)
    for slab, fresh in zip(slabs, own, strict=True):
        assert torch.equal(memory.tokens(slab, 0, used), expected[:, :used])
        assert torch.equal(memory.tokens(slab, used, used + more), fresh)
    memory.free(slabs[0])  # the other slab still has the prefix
    assert torch.equal(memory.tokens(slabs[1], 0, used), expected[:, :used])


def test_many_slabs_that_share_a_prefix_take_one_copy_of_it() -> None:
    geometry = Geometry(layers=4, heads=3, head_dim=64, dtype=torch.float32)
    memory = make("mapped", geometry, capacity=1024, slabs=65)
    assert memory._range is not None
    source = written(memory, 320)
    prefix = memory.copy_prefix(source, 0, 320)
    memory.free(source)
    slabs = [memory.allocate(0) for _ in range(64)]
    for slab in slabs:
        memory.map_prefix(slab, prefix, 0, 320)
    total = sum(float(memory.tokens(slab, 0, 320).sum()) for slab in slabs)  # reads all tokens of each
    assert total != 0
    one = memory.size(320)
    assert memory_of(memory._range, "Rss") == 64 * one
    assert memory_of(memory._range, "Pss") <= 1.01 * one
    assert memory_of(memory._range, "Anonymous") == 0
    for slab in slabs:  # one more token of each copies the page that it lies in
        numbers(memory, slab, 320, 321, seed=2)
    assert memory_of(memory._range, "Anonymous") <= 64 * geometry.layers * PAGE


def test_a_slab_that_is_freed_gives_its_memory_back() -> None:
    memory = make("mapped")
    assert memory._range is not None
    slabs = [written(memory, CAPACITY) for _ in range(4)]
    assert memory_of(memory._range) == 4 * memory.size(CAPACITY)
    prefix = memory.copy_prefix(slabs[0], 0, 64)
    memory.map_prefix(slabs[3], prefix, 0, 64)
    for slab in slabs:
        memory.free(slab)
    assert memory_of(memory._range) == 0


def test_what_cannot_be_shared_any_more_is_copied_and_booked() -> None:
    memory = make("mapped")
    source = written(memory, CAPACITY)
    expected = memory.tokens(source, 0, 50).clone()
    prefixes = [memory.copy_prefix(source, 0, 21), memory.copy_prefix(source, 21, 50)]
    memory.free(source)
    memory._mappings_left = 3 * GEOMETRY.layers  # for one slab and a half
    slabs = [memory.allocate(0), memory.allocate(0), memory.allocate(0)]
    for slab in slabs:
        for prefix in prefixes:
            memory.map_prefix(slab, prefix, prefix.start, prefix.end)
        assert torch.equal(memory.tokens(slab, 0, 50), expected)
    assert [slab.reserved for slab in slabs] == [0, 29, 50]
    assert memory.used == memory.size(79)
    for slab in slabs:
        memory.free(slab)
    assert memory.used == 0
    again = memory.allocate(0)
    memory.map_prefix(again, prefixes[0], 0, 21)
    assert again.reserved == 0


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_kept(place: str, number: float) -> None:
    """A slab that maps the prefix would read the tokens after its own, masked."""
    memory = make(place)
    slab = written(memory, 60)
    memory.tokens(slab, 40, 41)[2, 0, 3] = number
    assert memory.copy_prefix(slab, 0, 50) is None
    assert memory.copy_prefix(slab, 0, 32) is not None
    if place == "mapped":
        assert memory.copy_prefix(slab, 0, 39) is None  # the number lies in the last page


@given(st.lists(st.tuples(st.sampled_from(["allocate", "reserve", "free"]), st.integers(0, 100)), max_size=60))
def test_books_say_what_was_handed_out(actions: list[tuple[str, int]]) -> None:
    memory = make("mapped")
    memory.budget = memory.size(300)
    slabs: list[Slab] = []
    for action, number in actions:
        if action == "allocate" and memory.free_slabs:
            slabs.append(memory.allocate(number))
        elif action == "reserve" and slabs:
            memory.reserve(slabs[number % len(slabs)], number)
        elif action == "free" and slabs:
            memory.free(slabs.pop(number % len(slabs)))
        assert memory.used == memory.size(sum(slab.reserved for slab in slabs))
        assert memory.free_bytes == memory.budget - memory.used
        assert memory.free_slabs == 8 - len(slabs)
        assert len({slab.index for slab in slabs}) == len(slabs)
