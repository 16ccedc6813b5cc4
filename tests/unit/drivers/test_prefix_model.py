"""The prefix cache against a model of it: a plain list of the texts that it must have."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

pytest.importorskip("torch", reason="keys and values are tensors (extra `local`)")

from kernel.drivers.transformers.kv import Slab
from kernel.drivers.transformers.prefix_disk_cache import DiskRead
from kernel.drivers.transformers.radix import common
from tests.support.prefix_cache import LENGTH, Cache, numbers, torch

TOKENS = st.lists(st.sampled_from([1, 2]), min_size=1, max_size=9).map(
    lambda few: [one for one in few for _ in range(9)]
)
PROCESSES = st.integers(1, 4)


class Life(RuleBasedStateMachine):
    """All operations of a cache, in any order, with few pages of memory and of disk."""

    def __init__(self) -> None:
        super().__init__()
        self.fetches: list[DiskRead] = []
        self.slabs: list[tuple[Slab, list[int]]] = []  # and the tokens that each begins with
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
        self.cache.tree.expected_returns.call_started(process, usual)

    @rule(process=PROCESSES)
    def leave(self, process: int) -> None:
        self.cache.tree.expected_returns.call_ended(process)

    @rule(tokens=TOKENS, beside=st.integers(0, LENGTH))
    def fetch(self, tokens: list[int], beside: int) -> None:
        fetch = self.cache.tree.start_read(tokens, self.cache.memory.size(beside))
        if isinstance(fetch, DiskRead):
            self.fetches.append(fetch)

    @precondition(lambda self: self.fetches)
    @rule(place=st.integers(0, 4), fails=st.booleans())
    def fetched(self, place: int, fails: bool) -> None:
        fetch = self.fetches.pop(place % len(self.fetches))
        self.cache.tree.finish_read(fetch, None if fails else fetch.read())
        if fails:
            self._forget_what_went()

    @rule(tokens=TOKENS, process=PROCESSES)
    def keep(self, tokens: list[int], process: int) -> None:
        before = self.cache.tree.match_length(tokens)
        self.cache.keep(tokens, process)
        found = self.cache.tree.match_length(tokens)
        # To make room, a continuation of it may be removed from disk.
        assert found in (before, len(tokens)) or (self.cache.tree.disk_cache.limit and found < before)
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
        self.cache.tree.process_ended(process)
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
            assert self.cache.tree.match_length(held) == len(held)
            assert self.cache.on_disk(held) == 0

    @invariant()
    def what_two_living_processes_share_stays(self) -> None:
        for one, other in combinations(self.used.values(), 2):
            for text in one:
                shared = max(common(text, another) for another in other)
                assert self.cache.tree.match_length(text[:shared]) == shared
        self._forget_what_went()

    def _forget_what_went(self) -> None:
        """Cut the texts of each process to what is still cached."""
        for process, texts in self.used.items():
            self.used[process] = [text[: self.cache.tree.match_length(text)] for text in texts]

    def teardown(self) -> None:
        for slab, _ in self.slabs:
            self.cache.free(slab)
        for slab in self.taken:
            self.cache.memory.free(slab)
        for process in range(5):
            self.cache.tree.process_ended(process)
        while self.fetches:
            self.fetched(0, False)
        assert self.cache.tree.make_room(self.cache.memory.budget)
        assert (self.cache.memory.used, self.cache.memory.cached) == (0, 0)
        self.cache.check_books()
        assert not any(node.in_memory for node in self.cache.tree._root.below())
        assert self.cache.tree.disk_cache.limit or self.cache.texts() == []


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=120, stateful_step_count=40)
