"""Prefixes of prompts, kept in a radix tree of tokens so that nobody computes the same keys and values twice.

Asked and filled by `kv_allocator`. A hit may end at any token. Only what was computed as a prompt is kept: its numbers
are the same for whoever computes them. When memory is short, `eviction` says what goes, and whether to the disk or for
good; but not what several living processes share, unless a call would wait for ever.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable

import torch

from kernel.drivers.transformers.eviction import Rates, unused
from kernel.drivers.transformers.expected_returns import ExpectedReturns
from kernel.drivers.transformers.kv import KVMemory, Prefix, Slab
from kernel.drivers.transformers.prefix_disk_cache import Data, DiskRead, PrefixDiskCache
from kernel.drivers.transformers.radix import Node

SOON, NO_ROOM = "soon", "no room"


class PrefixCache:
    """Counts in tokens: `evicted` for good, `reread` from the disk."""

    def __init__(
        self, memory: KVMemory, folder: str = "", limit: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rates = Rates()
        self.think_times = ExpectedReturns(clock)
        self.spill = PrefixDiskCache(folder, limit, memory, self.rates, clock)
        self.evicted = self.reread = 0
        self._memory = memory
        self._now = clock
        self._root = Node(None, 0, [], Prefix(0, 0, torch.empty(0)))
        self._root.held = True
        self._of_process: dict[int, set[Node]] = {}
        self._nodes: Counter[Prefix] = Counter()  # by what they keep: who was split shares it
        self._holders: Counter[Prefix] = Counter()  # the same, of those that keep it in memory
        self._mapped: Counter[Prefix] = Counter()  # slabs by what they begin with
        self._of_slab: dict[Slab, list[Prefix]] = {}

    # ---- for those who look for something

    def longest(self, tokens: list[int]) -> int:
        """How many of the first `tokens` are kept, in memory or on disk."""
        return sum(count for _, count in self._root.path(tokens))

    def fetch(self, tokens: list[int], beside: int) -> DiskRead | str:
        """The next part of `tokens` to read from disk; pass it to `fetched` afterwards.

        `SOON` if one is being read, `NO_ROOM` if there is no memory for it and `beside` more bytes, and empty if
        nothing has to be read or it is computed sooner.
        """
        node, count = next(((node, count) for node, count in self._root.path(tokens) if not node.held), (self._root, 0))
        prefix = node.prefix
        if prefix.coming:
            return SOON
        if node is self._root:
            return ""
        if prefix.data is not None:  # by another that was split from it
            self._hold(node)
            return self.fetch(tokens, beside)
        size = self._bytes(prefix)
        if self.rates.reading(size) > self.rates.computing(node.start, node.start + count):
            return ""
        if not self._room_for(node, size + beside):
            return NO_ROOM
        assert node.parent is not None
        fetch = DiskRead(node, node.parent.prefix, self._memory.swap_in(prefix))
        self._memory.cached += size
        self._mapped[fetch.above] += 1  # it must be there when this comes
        prefix.coming = True
        return fetch

    def fetched(self, fetch: DiskRead, data: Data | None) -> None:
        """It was read; None if that could not be, and it is given up."""
        node, prefix = fetch.node, fetch.node.prefix
        prefix.coming = False
        self._mapped[fetch.above] -= 1
        if data is None:
            self._memory.cached -= self._bytes(prefix)
            while node.parent is not None and node.parent.prefix is prefix:  # it was split meanwhile
                node = node.parent
            self._remove(node)
            return
        prefix.data = data
        self.rates.was_read(self._bytes(prefix), fetch.seconds)
        self.reread += len(node.tokens)
        one: Node | None = node
        while one is not None and one.prefix is prefix:
            self._hold(one)
            one = one.parent

    def hold(self, slab: Slab, tokens: list[int]) -> int:
        """How many of the first `tokens` are in memory; for the sake of `slab` they stay until `release`."""
        found = 0
        for node, count in self._root.path(tokens):
            if not node.held:
                break
            found += count
            self._mapped[node.prefix] += 1
            self._of_slab.setdefault(slab, []).append(node.prefix)
        return found

    def use(self, slab: Slab, tokens: list[int], process: int) -> None:
        """Let the empty `slab` begin with `tokens`, which are held for it."""
        for node, count in self._root.path(tokens):
            self._memory.use(slab, node.prefix, node.start, node.start + count)
            self._touch(node, process)
        slab.length = len(tokens)

    def release(self, slab: Slab) -> None:
        """`slab` is about to be freed."""
        self._mapped.subtract(self._of_slab.pop(slab, ()))

    def keep(self, slab: Slab, tokens: list[int], process: int) -> None:
        """Keep the first of `slab`'s keys and values, which are those of `tokens`.

        Not if there is no room for them, or if they are no numbers.
        """
        node, found = self._root, 0
        for known, count in list(self._root.path(tokens)):
            found = known.start + count
            if known.parent is None:
                return  # it went, to make room for what it goes on from
            node = self._split(known, count) if count < len(known.tokens) else known
            if not node.held and not self._take(node, slab):
                return
            self._touch(node, process)
        if found < len(tokens):
            child = Node(node, found, tokens[found:], Prefix(found, len(tokens), None))
            if self._take(child, slab):
                node.children[tokens[found]] = child
                self._nodes[child.prefix] += 1
                self._touch(child, process)

    def make_room(self, size: int, *, shared: bool = False) -> bool:
        """Evict until `size` bytes fit beside what sequences and prefixes take; whether they do.

        What several living processes share stays, unless `shared`.
        """
        most = sys.maxsize if shared else 1  # users
        while self._memory.free_bytes < size:
            leaves = [leaf for leaf in self._leaves() if len(leaf.users) <= most and not self._mapped[leaf.prefix]]
            if not leaves:
                return False
            self._evict(self._least(leaves))
        return True

    def ended(self, process: int) -> None:
        """The process has ended: what it used need not be kept for it."""
        self.think_times.ended(process)
        for node in self._of_process.pop(process, ()):
            node.users.pop(process, None)

    # ---- inside

    def _bytes(self, prefix: Prefix) -> int:
        return self._memory.prefix_bytes(prefix.start, prefix.end)

    def _touch(self, node: Node, process: int) -> None:
        node.last = self._now()
        node.uses += 1
        if node.uses == 1:
            node.first = node.last
        if process:
            node.users[process] = self.think_times.call(process)
            self._of_process.setdefault(process, set()).add(node)

    def _split(self, node: Node, count: int) -> Node:
        upper = node.split(count)
        self._nodes[node.prefix] += 1
        for process in upper.users:
            self._of_process[process].add(upper)
        if node.held:
            self._holders[node.prefix] += 1
        return upper

    def _hold(self, node: Node) -> None:
        """The data of its prefix are in memory: it has them."""
        node.held = True
        self._holders[node.prefix] += 1

    def _let_go(self, node: Node) -> None:
        """It does not need them there any more."""
        if node.held:
            node.held = False
            self._holders[node.prefix] -= 1
            if not self._holders[node.prefix]:
                del self._holders[node.prefix], self._mapped[node.prefix]
                self._memory.cached -= self._bytes(node.prefix)
                node.prefix.data = None

    def _forget(self, prefix: Prefix) -> None:
        """A node does not keep it any more."""
        self._nodes[prefix] -= 1
        if not self._nodes[prefix]:
            del self._nodes[prefix]
            prefix.copy = None

    def _room_for(self, node: Node, size: int) -> bool:
        """`make_room` for what comes to `node`: neither that nor what it goes on from must go for it."""
        assert node.parent is not None
        self._mapped[node.parent.prefix] += 1
        node.prefix.coming = True
        fits = self.make_room(size)
        node.prefix.coming = False
        self._mapped[node.parent.prefix] -= 1
        return fits

    def _take(self, node: Node, slab: Slab) -> bool:
        """Have the keys and values of `node` in memory, a copy of those in `slab`, if that goes."""
        if node.prefix.coming:
            return False
        if node.prefix.data is None:
            size = self._memory.prefix_bytes(node.start, node.end)
            if not self._room_for(node, size):
                return False
            prefix = self._memory.keep(slab, node.start, node.end)
            if prefix is None:
                return False
            self._memory.cached += size
            if self._nodes[node.prefix]:  # it had another one, on disk
                self._nodes[prefix] += 1
                self._forget(node.prefix)
            node.prefix = prefix
        self._hold(node)
        return True

    # ---- what goes

    def _leaves(self) -> Iterable[Node]:
        """The nodes in memory below which there is none in memory."""
        for node in self._root.below():
            if node.held and not any(child.held or child.prefix.coming for child in node.children.values()):
                yield node

    def _evict(self, leaf: Node) -> None:
        """Give up its place in memory, by what is less waste."""
        if leaf.prefix.copy is not None or self._swap_out(leaf):
            self._let_go(leaf)
        else:
            self._remove(leaf)

    def _swap_out(self, leaf: Node) -> bool:
        """Whether its keys and values were worth a place on the disk, and got one."""
        prefix = leaf.prefix
        size = self._bytes(prefix)
        if not (leaf.users or leaf.uses > 1) or not self.spill.may_write(size):
            return False
        dear = self.rates.computing(prefix.start, prefix.end)
        if self.rates.writing(size) + self.rates.reading(size) > dear:
            return False
        worth = self._worth(leaf)
        while self.spill.used + size > self.spill.limit:
            others = [one for one in self._root.below() if not (one.held or one.children or one.prefix.coming)]
            if not others or self._worth(least := self._least(others)) >= worth:
                return False
            self._remove(least)
        return self.spill.write(prefix)

    def _remove(self, node: Node) -> None:
        """Give it up for good, with all that goes on from it."""
        for one in (node, *node.below()):
            self.evicted += len(one.tokens)
            self._let_go(one)
            self._forget(one.prefix)
            for process in one.users:
                self._of_process[process].discard(one)
        node.cut()

    def _least(self, nodes: Iterable[Node]) -> Node:
        """The one that is the least waste to give up; among equals, the one that was not used for longest."""
        return min(nodes, key=lambda node: (self._worth(node), node.last))

    def _worth(self, node: Node) -> float:
        """Seconds that it costs to have it again, for each byte, and each second until it is likely to be used."""
        now, size = self._now(), self._memory.prefix_bytes(node.start, node.end)
        cost = self.rates.computing(node.start, node.end)
        if node.prefix.copy is not None:
            cost = min(cost, self.rates.reading(size))
        away = self.think_times.remaining(node.users)
        return cost / (size * unused(now, node.first, node.last, node.uses, away))
