"""The prefix cache: its hits, the memory that prefixes share, and the order of eviction.

The KV is made up: a token's numbers depend on all tokens before it, so KV of another text is noticed.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="keys and values are tensors (extra `local`)")

from kernel.drivers.transformers.radix import common
from tests.support.prefix_cache import Cache

TOKENS = st.lists(st.sampled_from([1, 2]), min_size=1, max_size=9).map(
    lambda few: [one for one in few for _ in range(9)]
)


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
def test_common_is_the_length_of_the_longest_common_beginning(one: list[int], other: list[int]) -> None:
    places = (place for place in range(min(len(one), len(other))) if one[place] != other[place])
    assert common(one, other) == next(places, min(len(one), len(other)))


@settings(max_examples=60)
@given(st.lists(TOKENS, min_size=1, max_size=8), st.lists(TOKENS, min_size=1, max_size=6))
def test_what_is_found_is_the_longest_common_beginning_with_all_that_is_kept(
    kept: list[list[int]], asked: list[list[int]]
) -> None:
    cache = Cache()
    for number, tokens in enumerate(kept):
        cache.keep(tokens, process=number % 3)
        cache.check_books()
    for tokens in asked + kept:
        for wanted in (tokens, tokens[:-5], [*tokens, 3, 3]):
            longest = max(common(wanted, known) for known in kept)
            assert cache.tree.match_length(wanted) == longest
            slab = cache.use(wanted)
            assert slab.length == longest
            cache.free(slab)
    cache.check_books()


def test_a_text_that_goes_on_shares_what_it_begins_with() -> None:
    cache = Cache()
    cache.keep([1] * 64)
    before = cache.memory.cached
    cache.keep([1] * 96)
    assert (before, cache.memory.cached) == (2 * cache.page, 3 * cache.page)
    assert cache.texts() == [[1] * 96]


def test_a_branch_splits_what_was_kept_without_copying_it() -> None:
    cache = Cache()
    cache.keep([1] * 64)
    cache.keep([1] * 32 + [2] * 32)
    assert sorted(cache.texts()) == [[1] * 64, [1] * 32 + [2] * 32]
    assert cache.memory.cached == 3 * cache.page


def test_the_least_used_goes_first() -> None:
    cache = Cache(pages=6)
    for first in (1, 2, 3):
        cache.keep([first] * 64)
    for first in (1, 3):
        cache.free(cache.use([first] * 64))
    cache.keep([4] * 64)
    assert sorted(text[0] for text in cache.texts()) == [1, 3, 4]
    assert cache.tree.evicted == 64


def test_what_is_dear_to_compute_again_stays_longer_than_what_is_cheap() -> None:
    cache = Cache(pages=5)
    cache.keep([1] * 64)
    cache.keep([1] * 64 + [2] * 32)  # at a greater depth
    cache.keep([3] * 32)
    cache.keep([4] * 64)
    assert sorted(text[0] for text in cache.texts()) == [1, 4]
    assert cache.tree.match_length([1] * 64 + [2] * 32) == 96


def test_leaves_go_before_what_others_begin_with() -> None:
    cache = Cache(pages=3)
    cache.keep([1] * 32)
    cache.keep([1] * 32 + [2] * 32)
    cache.keep([1] * 32 + [3] * 32)
    cache.keep([1] * 32 + [4] * 32)
    assert cache.tree.match_length([1] * 32) == 32
    assert len(cache.texts()) == 2


def test_what_was_used_often_long_ago_goes_in_the_end() -> None:
    cache = Cache(pages=4)
    cache.keep([1] * 64)
    for _ in range(10):
        cache.now += 1
        cache.free(cache.use([1] * 64))
    for first in range(2, 60):
        cache.now += 1
        cache.keep([first] * 64)
        cache.free(cache.use([first] * 64))
    assert cache.tree.match_length([1] * 64) == 0


def test_what_two_living_processes_share_stays_until_one_ends() -> None:
    cache = Cache(pages=4)
    cache.keep([1] * 64, process=1)
    cache.free(cache.use([1] * 64, process=2))
    assert not cache.tree.make_room(3 * cache.page)
    assert cache.tree.match_length([1] * 64) == 64
    cache.tree.process_ended(2)
    assert cache.tree.make_room(3 * cache.page)
    assert cache.tree.match_length([1] * 64) == 0


def test_what_one_process_shares_with_itself_may_go() -> None:
    cache = Cache(pages=4)
    cache.keep([1] * 64, process=1)
    cache.free(cache.use([1] * 64, process=1))
    assert cache.tree.make_room(3 * cache.page)


def test_what_is_kept_goes_on_from_what_is_there_even_where_memory_is_short() -> None:
    """To make room for the rest of a text, its beginning must not be evicted: the rest would have no parent."""
    cache = Cache(pages=2)
    cache.keep([1] * 32)
    cache.keep([1] * 64)
    cache.check_books()
    assert cache.tree.match_length([1] * 64) == 64
    cache.keep([2] * 64)
    cache.check_books()
    assert cache.texts() == [[2] * 64]
    cache.keep([2] * 96)  # larger than the whole budget
    cache.check_books()
    assert cache.texts() == [[2] * 64]


def test_a_lower_budget_gives_up_what_is_not_needed() -> None:
    cache = Cache(pages=8)
    for first in (1, 2, 3):
        cache.keep([first] * 64)
    slab = cache.use([1] * 64)
    cache.memory.budget = cache.page
    assert not cache.tree.make_room(0)
    assert cache.texts() == [[1] * 64]  # it is mapped
    cache.free(slab)
    assert cache.tree.make_room(0)
    assert cache.memory.cached == 0
