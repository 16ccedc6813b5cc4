"""The tree of prefixes beside a model of it: a plain list of all that is kept.

Keys and values are made up so that a token's numbers say which tokens came before it: whoever gets those of another
text is found out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

torch = pytest.importorskip("torch", reason="keys and values are tensors (extra `local`)")

from kernel.drivers.transformers.kv import Geometry, KVMemory, Slab  # noqa: E402
from kernel.drivers.transformers.prefix import SOON, PrefixCache  # noqa: E402
from kernel.drivers.transformers.radix import common  # noqa: E402
from kernel.drivers.transformers.spill import Fetch  # noqa: E402

GEOMETRY = Geometry(layers=2, heads=1, head_dim=16, dtype=torch.float32)  # 32 tokens to a page
LENGTH = 160
TOKENS = st.lists(st.sampled_from([1, 2]), min_size=1, max_size=9).map(
    lambda few: [one for one in few for _ in range(9)]
)

PROCESSES = st.integers(1, 4)


class Cache:
    """A cache in a memory of so many pages for each layer, and on as many of a disk, with a clock that stands unless
    it is set; and what a slab would hold that has computed some tokens."""

    def __init__(self, pages: int = 10_000, *, on_disk: int = 0) -> None:
        self.now = 0.0
        self.memory = KVMemory(GEOMETRY, LENGTH, 16, torch.device("cpu"), 0)
        self.memory.budget = pages * self.page
        self.folder = tempfile.TemporaryDirectory()
        self.tree = PrefixCache(self.memory, self.folder.name, on_disk * self.page, lambda: self.now)
        self.tree.rates.token = 1.0  # dear: whatever may go to the disk goes there

    @property
    def page(self) -> int:
        """What a page of tokens takes, in all layers."""
        return GEOMETRY.layers * 4096

    def computed(self, tokens: list[int]) -> Slab:
        slab = self.memory.allocate(0)
        self.memory.tokens(slab, 0, len(tokens)).copy_(numbers(tokens))
        return slab

    def keep(self, tokens: list[int], process: int = 0) -> None:
        slab = self.computed(tokens)
        self.tree.keep(slab, tokens, process)
        self.memory.free(slab)

    def use(self, tokens: list[int], process: int = 0) -> Slab:
        slab = self.memory.allocate(0)
        found = self.tree.hold(slab, tokens)
        self.tree.use(slab, tokens[:found], process)

        assert slab.length == found
        assert torch.equal(self.memory.tokens(slab, 0, found), numbers(tokens[:found]))
        return slab

    def free(self, slab: Slab) -> None:
        self.tree.release(slab)
        self.memory.free(slab)

    def texts(self) -> list[list[int]]:
        """All that is kept, from the root to each leaf."""
        return [tokens for tokens, _ in self._walk()]

    def fetch(self, tokens: list[int]) -> None:
        """Have all of it in memory that is kept."""
        while isinstance(fetch := self.tree.fetch(tokens, 0), Fetch):
            self.tree.fetched(fetch, fetch.read())
        assert fetch == ""

    def on_disk(self, tokens: list[int]) -> int:
        """How many of `tokens` are kept on disk alone."""
        return sum(count for node, count in self.tree._root.path(tokens) if not node.held)

    def check_books(self) -> None:
        prefixes = {node.prefix for _, nodes in self._walk() for node in nodes if node.held}
        assert all(prefix.data is not None for prefix in prefixes)
        copies = {node.prefix.copy for _, nodes in self._walk() for node in nodes if node.prefix.copy}
        assert self.tree.spill.used == sum(copy.size for copy in copies) <= self.tree.spill.limit
        prefixes |= {node.prefix for _, nodes in self._walk() for node in nodes if node.prefix.coming}
        assert self.memory.cached == sum(self.memory.prefix_bytes(prefix.start, prefix.end) for prefix in prefixes)
        prefixes = {prefix for prefix in prefixes if not prefix.coming}
        assert set(self.tree._holders) == prefixes
        nodes = {node for _, nodes in self._walk() for node in nodes}
        assert sum(self.tree._holders.values()) == sum(node.held for node in nodes)
        assert all(owned <= nodes for owned in self.tree._of_process.values())

    def _walk(self) -> Iterator[tuple[list[int], list[Any]]]:
        stack: list[tuple[Any, list[int], list[Any]]] = [(self.tree._root, [], [])]
        while stack:
            node, tokens, nodes = stack.pop()
            for first, child in node.children.items():
                assert child.parent is node
                assert child.start == len(tokens)
                assert child.tokens[0] == first
                assert child.prefix.start <= child.start
                assert child.end <= child.prefix.end
                assert node.held or not child.held
                assert child.held or child.prefix.copy is not None or child.prefix.coming
                stack.append((child, tokens + child.tokens, [*nodes, child]))
            if nodes and not node.children:
                yield tokens, nodes


def numbers(tokens: list[int]) -> Any:
    """[layers, tokens, row] that tell of each token which ones it comes after."""
    digest, rows = blake2b(), []
    for token in tokens:
        digest.update(bytes([token]))
        rows.append(int.from_bytes(digest.copy().digest()[:3], "little"))
    return torch.tensor(rows, dtype=torch.float32)[None, :, None].expand(GEOMETRY.layers, -1, GEOMETRY.row)


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
            assert cache.tree.longest(wanted) == longest
            slab = cache.use(wanted)
            assert slab.length == longest
            cache.free(slab)
    cache.check_books()


class Life(RuleBasedStateMachine):
    """Anything that may happen to a cache, in any order, in a memory of few pages and on a disk of few."""

    def __init__(self) -> None:
        super().__init__()
        self.fetches: list[Fetch] = []
        self.slabs: list[tuple[Slab, list[int]]] = []  # and what each was found to begin with
        self.taken: list[Slab] = []
        self.used: dict[int, list[list[int]]] = {}  # by living processes

    @initialize(pages=st.integers(1, 12), on_disk=st.integers(0, 12))
    def begin(self, pages: int, on_disk: int) -> None:
        self.cache = Cache(pages, on_disk=on_disk)

    @rule(seconds=st.sampled_from([0.01, 1.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.cache.now += seconds

    @rule(process=PROCESSES, usual=st.sampled_from([0.0, 1.0, 50.0]))
    def call(self, process: int, usual: float) -> None:
        self.cache.tree.absences.called(process, usual)

    @rule(process=PROCESSES)
    def leave(self, process: int) -> None:
        self.cache.tree.absences.left(process)

    @rule(tokens=TOKENS, beside=st.integers(0, LENGTH))
    def fetch(self, tokens: list[int], beside: int) -> None:
        fetch = self.cache.tree.fetch(tokens, self.cache.memory.size(beside))
        if isinstance(fetch, Fetch):
            self.fetches.append(fetch)

    @precondition(lambda self: self.fetches)
    @rule(place=st.integers(0, 4), fails=st.booleans())
    def fetched(self, place: int, fails: bool) -> None:
        fetch = self.fetches.pop(place % len(self.fetches))
        self.cache.tree.fetched(fetch, None if fails else fetch.read())
        if fails:
            self._forget_what_went()

    @rule(tokens=TOKENS, process=PROCESSES)
    def keep(self, tokens: list[int], process: int) -> None:
        before = self.cache.tree.longest(tokens)
        self.cache.keep(tokens, process)
        found = self.cache.tree.longest(tokens)
        # To make room, what goes on from it may leave the disk.
        assert found in (before, len(tokens)) or (self.cache.tree.spill.limit and found < before)
        self.used.setdefault(process, []).append(tokens[: found - self.cache.on_disk(tokens)])

    @precondition(lambda self: len(self.slabs) < 5)
    @rule(tokens=TOKENS, process=PROCESSES)
    def use(self, tokens: list[int], process: int) -> None:
        slab = self.cache.use(tokens, process)
        self.slabs.append((slab, tokens[: slab.length]))
        self.used.setdefault(process, []).append(tokens[: slab.length])

    @precondition(lambda self: self.slabs)
    @rule(place=st.integers(0, 4))
    def free(self, place: int) -> None:
        self.cache.free(self.slabs.pop(place % len(self.slabs))[0])

    @rule(process=PROCESSES)
    def end(self, process: int) -> None:
        self.cache.tree.ended(process)
        self.used.pop(process, None)

    @precondition(lambda self: len(self.taken) < 5)
    @rule(tokens=st.integers(1, LENGTH))
    def take(self, tokens: int) -> None:
        if self.cache.tree.make_room(self.cache.memory.size(tokens)):
            self.taken.append(self.cache.memory.allocate(tokens))

    @precondition(lambda self: self.taken)
    @rule()
    def give(self) -> None:
        self.cache.memory.free(self.taken.pop())

    @invariant()
    def the_books_are_right(self) -> None:
        self.cache.check_books()
        assert self.cache.memory.free_bytes >= 0

    @invariant()
    def what_is_mapped_stays_as_it_is(self) -> None:
        for slab, held in self.slabs:
            assert torch.equal(self.cache.memory.tokens(slab, 0, len(held)), numbers(held))
            assert self.cache.tree.longest(held) == len(held)
            assert self.cache.on_disk(held) == 0

    @invariant()
    def what_two_living_processes_share_stays(self) -> None:
        for one, other in combinations(self.used.values(), 2):
            for text in one:
                shared = max(common(text, another) for another in other)
                assert self.cache.tree.longest(text[:shared]) == shared
        self._forget_what_went()

    def _forget_what_went(self) -> None:
        """It is not used any more."""
        for process, texts in self.used.items():
            self.used[process] = [text[: self.cache.tree.longest(text)] for text in texts]

    def teardown(self) -> None:
        for slab, _ in self.slabs:
            self.cache.free(slab)
        for slab in self.taken:
            self.cache.memory.free(slab)
        for process in range(5):
            self.cache.tree.ended(process)
        while self.fetches:
            self.fetched(0, False)
        assert self.cache.tree.make_room(self.cache.memory.budget)
        assert (self.cache.memory.used, self.cache.memory.cached) == (0, 0)
        self.cache.check_books()
        assert not any(node.held for node in self.cache.tree._root.below())
        assert self.cache.tree.spill.limit or self.cache.texts() == []


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=120, stateful_step_count=40)


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
    assert cache.tree.longest([1] * 64 + [2] * 32) == 96


def test_leaves_go_before_what_others_begin_with() -> None:
    cache = Cache(pages=3)
    cache.keep([1] * 32)
    cache.keep([1] * 32 + [2] * 32)
    cache.keep([1] * 32 + [3] * 32)
    cache.keep([1] * 32 + [4] * 32)
    assert cache.tree.longest([1] * 32) == 32
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
    assert cache.tree.longest([1] * 64) == 0


def test_what_two_living_processes_share_stays_until_one_ends() -> None:
    cache = Cache(pages=4)
    cache.keep([1] * 64, process=1)
    cache.free(cache.use([1] * 64, process=2))
    assert not cache.tree.make_room(3 * cache.page)
    assert cache.tree.longest([1] * 64) == 64
    cache.tree.ended(2)
    assert cache.tree.make_room(3 * cache.page)
    assert cache.tree.longest([1] * 64) == 0


def test_what_one_process_shares_with_itself_may_go() -> None:
    cache = Cache(pages=4)
    cache.keep([1] * 64, process=1)
    cache.free(cache.use([1] * 64, process=1))
    assert cache.tree.make_room(3 * cache.page)


def test_what_is_kept_goes_on_from_what_is_there_even_where_memory_is_short() -> None:
    """To make room for the rest of a text its own beginning would go, and the rest would hang from nothing."""
    cache = Cache(pages=2)
    cache.keep([1] * 32)
    cache.keep([1] * 64)
    cache.check_books()
    assert cache.tree.longest([1] * 64) == 64
    cache.keep([2] * 64)
    cache.check_books()
    assert cache.texts() == [[2] * 64]
    cache.keep([2] * 96)  # there is no room for it at all
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


# ---- preserved, swapped or discarded


def test_what_a_process_that_lives_may_want_goes_to_the_disk_and_comes_back() -> None:
    cache = Cache(pages=2, on_disk=4)
    cache.keep([1] * 64, process=1)
    cache.keep([2] * 64, process=2)
    assert (cache.tree.longest([1] * 64), cache.on_disk([1] * 64)) == (64, 64)
    assert (cache.tree.spill.used, cache.tree.evicted) == (2 * cache.page, 0)
    cache.fetch([1] * 64)
    assert (cache.on_disk([1] * 64), cache.on_disk([2] * 64), cache.tree.reread) == (0, 64, 64)
    cache.free(cache.use([1] * 64))
    cache.check_books()


def test_what_was_read_back_needs_not_be_written_again() -> None:
    cache = Cache(pages=2, on_disk=4)
    cache.keep([1] * 64, process=1)
    cache.keep([2] * 64, process=2)
    cache.fetch([1] * 64)
    used = cache.tree.spill.used
    cache.fetch([2] * 64)
    assert (cache.on_disk([1] * 64), cache.tree.spill.used) == (64, used)


def test_what_nobody_is_waiting_for_is_discarded() -> None:
    cache = Cache(pages=2, on_disk=4)
    cache.keep([1] * 64, process=1)
    cache.tree.ended(1)
    cache.keep([2] * 64, process=2)
    assert (cache.tree.longest([1] * 64), cache.tree.evicted, cache.tree.spill.used) == (0, 64, 0)


def test_what_is_computed_sooner_than_written_and_read_is_discarded() -> None:
    cache = Cache(pages=2, on_disk=4)
    cache.tree.rates.token = 1e-9
    cache.keep([1] * 64, process=1)
    cache.keep([2] * 64, process=2)
    assert (cache.tree.longest([1] * 64), cache.tree.spill.used) == (0, 0)


def test_what_is_computed_sooner_than_read_is_not_read() -> None:
    cache = Cache(pages=2, on_disk=4)
    cache.keep([1] * 64, process=1)
    cache.keep([2] * 64, process=2)
    cache.tree.rates.token = 1e-9
    assert cache.tree.fetch([1] * 64, 0) == ""
    cache.keep([1] * 64, process=1)  # it was computed anew, and is in memory again
    cache.check_books()
    assert cache.on_disk([1] * 64) == 0


def test_the_process_that_stays_away_for_longest_gives_up_its_place_first() -> None:
    """One that comes back after a second stays in memory; one that takes a minute goes to the disk."""
    cache = Cache(pages=4, on_disk=8)
    for process, usual in ((1, 60.0), (2, 1.0)):
        cache.tree.absences.called(process, usual)
        cache.keep([process] * 64, process)
        cache.tree.absences.left(process)
    cache.tree.absences.called(3, 1.0)
    cache.keep([3] * 64, 3)
    assert [cache.on_disk([process] * 64) for process in (1, 2, 3)] == [64, 0, 0]


def test_who_is_late_is_taken_to_stay_away_for_as_long_again() -> None:
    cache = Cache(pages=4, on_disk=8)
    for process, usual in ((1, 20.0), (2, 1.0)):
        cache.tree.absences.called(process, usual)
        cache.keep([process] * 64, process)
        cache.tree.absences.left(process)
    cache.now = 15.0  # the first is likely to come in 5 seconds, or 15; the second should have come long ago
    cache.tree.absences.called(1, 20.0)
    cache.free(cache.use([1] * 64, 1))
    cache.tree.absences.called(3, 1.0)
    cache.keep([3] * 64, 3)
    assert [cache.on_disk([process] * 64) for process in (1, 2, 3)] == [0, 64, 0]


def test_what_the_last_call_of_a_process_did_not_use_is_not_waited_for() -> None:
    cache = Cache(pages=4, on_disk=8)
    cache.tree.absences.called(1, 1.0)
    cache.keep([1] * 64, process=1)
    cache.tree.absences.called(1, 1.0)
    cache.keep([2] * 64, process=1)
    cache.tree.absences.called(3, 5.0)
    cache.keep([3] * 64, process=3)
    assert [cache.on_disk([first] * 64) for first in (1, 2, 3)] == [64, 0, 0]


def test_a_full_disk_gives_up_what_is_least_worth() -> None:
    cache = Cache(pages=2, on_disk=4)
    for first in (1, 2, 3, 4):
        cache.keep([first] * 64, process=first)
        cache.now += 20
    assert cache.tree.spill.used == 4 * cache.page
    assert [cache.tree.longest([first] * 64) for first in (1, 2, 3, 4)] == [0, 64, 64, 64]


def test_a_disk_that_takes_nothing_means_that_it_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(pages=2, on_disk=4)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.memory, "swap_out", full)
    cache.keep([1] * 64, process=1)
    cache.keep([2] * 64, process=2)
    assert (cache.tree.longest([1] * 64), cache.tree.longest([2] * 64)) == (0, 64)
    monkeypatch.undo()
    cache.keep([3] * 64, process=3)
    assert cache.tree.longest([2] * 64) == 0  # it is not tried again at once
    cache.now += 10
    cache.keep([4] * 64, process=4)
    assert cache.on_disk([3] * 64) == 64


def test_what_cannot_be_read_is_given_up() -> None:
    cache = Cache(pages=2, on_disk=4)
    cache.keep([1] * 64, process=1)
    cache.keep([2] * 64, process=2)
    fetch = cache.tree.fetch([1] * 64, 0)
    assert isinstance(fetch, Fetch)
    assert cache.tree.fetch([1] * 64, 0) == SOON
    cache.tree.fetched(fetch, None)
    del fetch
    cache.check_books()
    assert (cache.tree.longest([1] * 64), cache.tree.spill.used) == (0, 2 * cache.page)
