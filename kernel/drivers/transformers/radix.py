"""A radix tree of tokens: which beginnings of texts are kept, each token of them once.

Owned by the prefix cache, which hangs keys and values on its nodes. It knows texts and who uses them, and no memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from kernel.drivers.transformers.kv import Prefix


class Node:
    """An edge of the tree: `tokens` at `start`, and what follows. The root has no parent and no tokens.

    `held`: its keys and values are in memory, else on disk alone. `users`: processes that used it and live, each with
    the number of its call that did last. It was used `uses` times, the `first` and the `last` at these seconds.
    """

    __slots__ = ("children", "first", "held", "last", "parent", "prefix", "start", "tokens", "users", "uses")

    def __init__(self, parent: Node | None, start: int, tokens: list[int], prefix: Prefix) -> None:
        self.parent = parent
        self.start = start
        self.tokens = tokens
        self.prefix = prefix
        self.children: dict[int, Node] = {}
        self.held = False
        self.users: dict[int, int] = {}
        self.uses = 0
        self.first = self.last = 0.0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def path(self, tokens: list[int]) -> Iterator[tuple[Node, int]]:
        """The nodes below this one along `tokens`, each with how many of its own tokens go along."""
        node, found = self, 0
        while found < len(tokens) and (following := node.children.get(tokens[found])) is not None:
            node = following
            count = common(node.tokens, tokens[found : found + len(node.tokens)])
            yield node, count
            found += count
            if count < len(node.tokens):
                return

    def below(self) -> Iterator[Node]:
        """All nodes below this one."""
        stack = list(self.children.values())
        while stack:
            node = stack.pop()
            stack += node.children.values()
            yield node

    def split(self, count: int) -> Node:
        """Cut it after `count` tokens; the new upper half, which has the same prefix."""
        assert self.parent is not None
        upper = Node(self.parent, self.start, self.tokens[:count], self.prefix)
        self.parent.children[self.tokens[0]] = upper
        upper.children[self.tokens[count]] = self
        upper.held, upper.users, upper.uses = self.held, dict(self.users), self.uses
        upper.first, upper.last = self.first, self.last
        self.parent, self.start, self.tokens = upper, self.start + count, self.tokens[count:]
        return upper

    def cut(self) -> None:
        """Take it and all below out of the tree."""
        assert self.parent is not None
        del self.parent.children[self.tokens[0]]
        self.parent = None


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
