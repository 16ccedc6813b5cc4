"""Prefixes of prompts, kept in a radix tree of tokens so that nobody computes the same keys and values twice.

Asked and filled by the engine. A hit may end at any token. Only what was computed as a prompt is kept: its numbers are
the same for whoever computes them. What goes when memory is short is what costs least to compute again for the memory
it takes and the use it had (GreedyDual-Size with frequency; Cherkasova, "Improving WWW Proxies Performance with
Greedy-Dual-Size-Frequency Caching Policy", 1998), but not what several living processes share, unless a call would wait
for ever.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

import torch

from kernel.drivers.transformers.kv import KVMemory, Prefix, Slab

DEPTH = 4000  # tokens of context at which attention costs as much as all the rest


class _Node:
    """An edge of the tree: `tokens` at `start`, and what follows. `users`: processes that used it and live.

    The root has no parent, no tokens, and a prefix of nothing.
    """

    __slots__ = ("children", "parent", "prefix", "start", "tokens", "users", "uses", "worth")

    def __init__(self, parent: _Node | None, start: int, tokens: list[int], prefix: Prefix) -> None:
        self.parent = parent
        self.start = start
        self.tokens = tokens
        self.prefix = prefix
        self.children: dict[int, _Node] = {}
        self.users: set[int] = set()
        self.uses = 0
        self.worth = 0.0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class PrefixCache:
    """`size` is in bytes; `evicted` counts tokens."""

    def __init__(self, memory: KVMemory) -> None:
        self._memory = memory
        self._root = _Node(None, 0, [], Prefix(0, 0, torch.empty(0)))
        self._of_process: dict[int, set[_Node]] = {}
        self._holders: Counter[Prefix] = Counter()  # nodes by what they keep: a node that was split shares it
        self._mapped: Counter[Prefix] = Counter()  # slabs by what they begin with
        self._of_slab: dict[Slab, list[Prefix]] = {}
        self._clock = 0.0
        self.evicted = 0

    def longest(self, tokens: list[int]) -> int:
        """How many of the first `tokens` are kept."""
        return sum(count for _, count in self._path(tokens))

    def hold(self, slab: Slab, tokens: list[int]) -> int:
        """How many of the first `tokens` are kept; for the sake of `slab` they stay until `release`."""
        found = 0
        for node, count in self._path(tokens):
            found += count
            self._mapped[node.prefix] += 1
            self._of_slab.setdefault(slab, []).append(node.prefix)
        return found

    def use(self, slab: Slab, tokens: list[int], process: int) -> None:
        """Let the empty `slab` begin with `tokens`, which are held for it."""
        for node, count in self._path(tokens):
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
        for node, count in list(self._path(tokens)):
            found = node.start + count
            if count < len(node.tokens):
                node = self._split(node, count)
            self._touch(node, process)
        if found == len(tokens):
            return
        size = self._memory.prefix_bytes(found, len(tokens))
        self._mapped[node.prefix] += 1  # what it goes on from must not go to make room for it
        fits = self.make_room(size)
        self._mapped[node.prefix] -= 1
        if not fits:
            return
        prefix = self._memory.keep(slab, found, len(tokens))
        if prefix is None:
            return
        self._memory.cached += size
        child = _Node(node, found, tokens[found:], prefix)
        node.children[tokens[found]] = child
        self._holders[prefix] = 1
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
            self._evict(min(leaves, key=lambda leaf: leaf.worth))
        return True

    def ended(self, process: int) -> None:
        """The process has ended: what it used need not be kept for it."""
        for node in self._of_process.pop(process, ()):
            node.users.discard(process)

    # ---- inside

    def _path(self, tokens: list[int]) -> Iterator[tuple[_Node, int]]:
        """The nodes along `tokens`, each with how many of its own tokens go along."""
        node, found = self._root, 0
        while found < len(tokens) and (following := node.children.get(tokens[found])) is not None:
            node = following
            count = common(node.tokens, tokens[found : found + len(node.tokens)])
            yield node, count
            found += count
            if count < len(node.tokens):
                return

    def _split(self, node: _Node, count: int) -> _Node:
        """Cut `node` after `count` tokens; the upper half."""
        assert node.parent is not None
        upper = _Node(node.parent, node.start, node.tokens[:count], node.prefix)
        node.parent.children[node.tokens[0]] = upper
        upper.children[node.tokens[count]] = node
        upper.users, upper.uses, upper.worth = set(node.users), node.uses, node.worth
        for process in upper.users:
            self._of_process[process].add(upper)
        self._holders[node.prefix] += 1
        node.parent, node.start, node.tokens = upper, node.start + count, node.tokens[count:]
        return upper

    def _touch(self, node: _Node, process: int) -> None:
        node.uses += 1
        # Cost per byte: each token takes the same, and costs the more the longer what it looks at.
        node.worth = self._clock + node.uses * (1 + (node.start + node.end) / 2 / DEPTH)
        if process:
            node.users.add(process)
            self._of_process.setdefault(process, set()).add(node)

    def _leaves(self) -> Iterator[_Node]:
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            if node.children:
                stack += node.children.values()
            else:
                yield node

    def _evict(self, leaf: _Node) -> None:
        assert leaf.parent is not None
        self._clock = max(self._clock, leaf.worth)
        self.evicted += len(leaf.tokens)
        del leaf.parent.children[leaf.tokens[0]]
        for process in leaf.users:
            self._of_process[process].discard(leaf)
        self._holders[leaf.prefix] -= 1
        if not self._holders[leaf.prefix]:
            del self._holders[leaf.prefix], self._mapped[leaf.prefix]
            self._memory.cached -= self._memory.prefix_bytes(leaf.prefix.start, leaf.prefix.end)


def common(one: list[int], other: list[int]) -> int:
    """The length of the longest common beginning."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low + 1 < high:  # the first `low` are the same, the first `high` are not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
