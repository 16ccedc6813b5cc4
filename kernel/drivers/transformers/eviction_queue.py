"""The order in which the prefix cache evicts: its evictable nodes, the least valuable one first.

The prefix cache has one queue for its nodes in memory and one for those on disk only, and reports each node that has
changed. This module never looks at the tree: it is given the rule that says which nodes may be evicted.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from kernel.drivers.transformers.radix import RadixNode

RANKED_FOR = 1.0  # seconds for which the order stays as computed; values that fall meanwhile are noticed afterwards
RANKING_SHARE = 0.05  # the most of the time that recomputing the order may take
STALE = 64  # outdated entries that the heap may have besides as many as there are valid ones


class EvictionQueue:
    """A heap of nodes by value; of several with one value, the least recently used is first.

    The values change as time passes. A node whose value has risen since its place was computed moves back when it
    would be evicted. All places are recomputed from time to time. So one eviction costs the logarithm of the number
    of nodes. `value` gives the value of a node at a time, `evictable` says whether a node may be evicted now.
    """

    def __init__(
        self,
        value: Callable[[RadixNode, float], float],
        evictable: Callable[[RadixNode], bool],
        clock: Callable[[], float],
    ) -> None:
        self._value = value
        self._evictable = evictable
        self._clock = clock
        self._heap: list[tuple[float, float, int, RadixNode]] = []
        self._entries: dict[RadixNode, int] = {}  # the number of each node's valid entry in the heap
        self._numbers = count()
        self._rank_at = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def update(self, node: RadixNode) -> None:
        """The state or the value of `node` has changed: give it its place, or remove it if it may not be evicted."""
        if self._evictable(node):
            self._push(node, self._clock())
        else:
            self.discard(node)
        if len(self._heap) > 2 * len(self._entries) + STALE:
            self._rank(self._clock())

    def discard(self, node: RadixNode) -> None:
        """Leave `node` out until its next `update`."""
        self._entries.pop(node, None)

    def least(self) -> tuple[RadixNode, float] | None:
        """The evictable node of the least value, and its value; None if there is none."""
        now = self._clock()
        if now >= self._rank_at:
            self._rank(now)
        while self._heap:
            value, _, number, node = self._heap[0]
            if self._entries.get(node) != number:
                heapq.heappop(self._heap)
            elif not self._evictable(node):
                del self._entries[node]
            elif self._value(node, now) > value:
                self._push(node, now)
            else:
                return node, value
        return None

    def _push(self, node: RadixNode, now: float) -> None:
        number = self._entries[node] = next(self._numbers)
        heapq.heappush(self._heap, (self._value(node, now), node.last, number, node))

    def _rank(self, now: float) -> None:
        """Recompute all places, and drop the outdated entries."""
        started = self._clock()
        self._heap = [
            (self._value(node, now), node.last, number, node)
            for node, number in self._entries.items()
            if self._evictable(node)
        ]
        self._entries = {entry[3]: entry[2] for entry in self._heap}
        heapq.heapify(self._heap)
        self._rank_at = now + max(RANKED_FOR, (self._clock() - started) / RANKING_SHARE)
