"""A radix tree of tokens: the beginnings of texts that the prefix cache has. It stores a shared beginning only once.

The prefix cache owns the tree and attaches KV to its nodes. The tree knows texts and the processes that use them; it
never allocates memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from kernel.drivers.transformers.kv import Prefix


class RadixNode:
    """A part of a text: `tokens`, the first of which is at position `start`, and as children the parts that may follow.

    The root has no parent and no tokens. `prefix` has the KV, which the halves of a split node share. `in_memory`:
    whether the KV is in memory; else it is only on disk. `users`: the living processes that used the node, each with
    the number of its last call that did. The node was used `uses` times; `first` and `last` are the times of the first
    and the last use, in seconds. `children_in_memory` counts them.
    """

    __slots__ = (
        "children",
        "children_in_memory",
        "first",
        "in_memory",
        "last",
        "parent",
        "prefix",
        "start",
        "tokens",
        "users",
        "uses",
    )

    def __init__(self, parent: RadixNode | None, start: int, tokens: list[int], prefix: Prefix) -> None:
        self.parent = parent
        self.start = start
        self.tokens = tokens
        self.prefix = prefix
        self.children: dict[int, RadixNode] = {}
        self.in_memory = False
        self.children_in_memory = 0
        self.users: dict[int, int] = {}
        self.uses = 0
        self.first = self.last = 0.0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def path(self, tokens: list[int]) -> Iterator[tuple[RadixNode, int]]:
        """The nodes below this one along `tokens`, each with the count of its tokens that match."""
        node, found = self, 0
        while found < len(tokens) and (following := node.children.get(tokens[found])) is not None:
            node = following
            count = common(node.tokens, tokens[found : found + len(node.tokens)])
            yield node, count
            found += count
            if count < len(node.tokens):
                return

    def below(self) -> Iterator[RadixNode]:
        """All nodes below this one, at any depth."""
        stack = list(self.children.values())
        while stack:
            node = stack.pop()
            stack += node.children.values()
            yield node

    def split(self, count: int) -> RadixNode:
        """Split the node after `count` tokens. Returns the upper half, a new node with the same `prefix`."""
        assert self.parent is not None
        upper = RadixNode(self.parent, self.start, self.tokens[:count], self.prefix)
        self.parent.children[self.tokens[0]] = upper
        upper.children[self.tokens[count]] = self
        upper.in_memory, upper.users, upper.uses = self.in_memory, dict(self.users), self.uses
        upper.children_in_memory = int(self.in_memory)
        upper.first, upper.last = self.first, self.last
        self.parent, self.start, self.tokens = upper, self.start + count, self.tokens[count:]
        return upper

    def cut(self) -> None:
        """Take this node, and all below it, out of the tree."""
        assert self.parent is not None
        del self.parent.children[self.tokens[0]]
        self.parent = None


def common(one: list[int], other: list[int]) -> int:
    """How many tokens at the beginning of the two texts are the same."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low + 1 < high:  # the first `low` tokens are the same, the first `high` are not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
