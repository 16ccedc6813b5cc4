"""The prefix cache: the KV of prompts in a radix tree of tokens, so that no prefix is computed twice.

`kv_allocator` asks and fills the cache. A hit may end at any token. When memory is short, the cache swaps or discards
prefixes by the costs in `eviction`. It never stores the KV of generated tokens: only KV computed as a prompt has the
same bits in every call. It never evicts a prefix that several living processes share, unless a call would otherwise
wait for ever.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import torch

from kernel.drivers.transformers.eviction import Rates, seconds_until_use
from kernel.drivers.transformers.eviction_queue import EvictionQueue
from kernel.drivers.transformers.expected_returns import ExpectedReturns
from kernel.drivers.transformers.kv import KVMemory, Prefix, Slab
from kernel.drivers.transformers.prefix_disk_cache import Data, DiskRead, PrefixDiskCache
from kernel.drivers.transformers.radix import RadixNode

SOON, NO_ROOM = "soon", "no room"


class PrefixCache:
    """`evicted`: tokens discarded so far, from memory and from disk; `reread`: tokens read back from disk so far."""

    def __init__(
        self, memory: KVMemory, folder: str = "", limit: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rates = Rates()
        self.expected_returns = ExpectedReturns(clock)
        self.disk_cache = PrefixDiskCache(folder, limit, memory, self.rates, clock)
        self.evicted = self.reread = 0
        self._memory = memory
        self._now = clock
        self._root = RadixNode(None, 0, [], Prefix(0, 0, torch.empty(0)))
        self._root.in_memory = True
        self._of_process: dict[int, set[RadixNode]] = {}
        self._nodes: Counter[Prefix] = Counter()  # how many nodes have a prefix: split nodes share it
        self._nodes_in_memory: Counter[Prefix] = Counter()  # how many of these nodes need it in memory
        self._pins: Counter[Prefix] = Counter()  # how many slabs begin with each prefix, and how many reads continue it
        self._pinned: dict[Slab, list[Prefix]] = {}
        self._leaves = EvictionQueue(self._value, _is_unshared_leaf, clock)
        self._leaves_on_disk = EvictionQueue(self._value, _removable, clock)

    # ---- for the allocator

    def match_length(self, tokens: list[int]) -> int:
        """How many tokens from the beginning of `tokens` are cached, in memory or on disk."""
        return sum(count for _, count in self._root.path(tokens))

    def start_read(self, tokens: list[int], beside: int) -> DiskRead | str:
        """Reserve memory for the next part of `tokens` that is on disk, and return a `DiskRead` of it.

        The caller runs the read, then calls `finish_read`. Returns `SOON` instead if that part is being read already,
        `NO_ROOM` if there is no memory for it and `beside` more bytes, and "" if no part is on disk or if computing it
        takes less time.
        """
        path = self._root.path(tokens)
        node, count = next(((node, count) for node, count in path if not node.in_memory), (self._root, 0))
        prefix = node.prefix
        if prefix.filling:
            return SOON
        if node is self._root:
            return ""
        if prefix.data is not None:  # already read for the other half of a split node
            self._set_in_memory(node)
            return self.start_read(tokens, beside)
        size = self._bytes(prefix)
        if self.rates.reading(size) > self.rates.computing(node.start, node.start + count):
            return ""
        if not self._room_for(node, size + beside):
            return NO_ROOM
        assert node.parent is not None
        read = DiskRead(node, node.parent.prefix, self._memory.prefix_reader(prefix))
        self._memory.cached += size
        self._pins[read.above] += 1  # the prefix above must still be in memory when the read is finished
        prefix.filling = True
        return read

    def finish_read(self, read: DiskRead, data: Data | None) -> None:
        """Store the `data` of a finished read. If it is None, the read failed: discard the prefix."""
        node, prefix = read.node, read.node.prefix
        prefix.filling = False
        self._pins[read.above] -= 1
        if data is None:
            self._memory.cached -= self._bytes(prefix)
            while node.parent is not None and node.parent.prefix is prefix:  # split during the read: find the top
                node = node.parent
            self._remove(node)
            return
        prefix.data = data
        self.rates.record_read(self._bytes(prefix), read.seconds)
        self.reread += len(node.tokens)
        above: RadixNode | None = node
        while above is not None and above.prefix is prefix:
            self._set_in_memory(above)
            above = above.parent

    def pin(self, slab: Slab, tokens: list[int]) -> int:
        """Pin the cached beginning of `tokens` that is in memory, until `unpin(slab)`. Returns its length."""
        found = 0
        for node, count in self._root.path(tokens):
            if not node.in_memory:
                break
            found += count
            self._pins[node.prefix] += 1
            self._pinned.setdefault(slab, []).append(node.prefix)
        return found

    def use(self, slab: Slab, tokens: list[int], process: int) -> None:
        """Make the empty `slab` begin with the KV of `tokens`, which are pinned for it."""
        for node, count in self._root.path(tokens):
            self._memory.map_prefix(slab, node.prefix, node.start, node.start + count)
            self._touch(node, process)
        slab.length = len(tokens)

    def unpin(self, slab: Slab) -> None:
        """Unpin all that is pinned for `slab`. Call it before the slab is freed."""
        self._pins.subtract(self._pinned.pop(slab, ()))

    def insert(self, slab: Slab, tokens: list[int], process: int) -> None:
        """Cache the KV of `tokens`, with which `slab` begins, as far as there is room for it and it contains no NaN."""
        node, found = self._root, 0
        for known, count in list(self._root.path(tokens)):
            found = known.start + count
            if known.parent is None:
                return  # this node was evicted to make room for the node above it
            node = self._split(known, count) if count < len(known.tokens) else known
            if not node.in_memory and not self._copy_in(node, slab):
                return
            self._touch(node, process)
        if found < len(tokens):
            child = RadixNode(node, found, tokens[found:], Prefix(found, len(tokens), None))
            if self._copy_in(child, slab):
                node.children[tokens[found]] = child
                self._nodes[child.prefix] += 1
                self._touch(child, process)

    def make_room(self, size: int, *, shared: bool = False) -> bool:
        """Evict prefixes until `size` bytes of the budget are free. Returns False if that is not possible.

        Prefixes that several living processes share are evicted only if `shared` is set.
        """
        leaves = self._leaves
        if shared:
            leaves = EvictionQueue(self._value, _is_leaf, self._now)
            for node in self._root.below():
                leaves.update(node)
        pinned: list[RadixNode] = []
        while self._memory.free_bytes < size and (least := leaves.least()) is not None:
            leaf, value = least
            above = leaf.parent
            assert above is not None
            if self._pins[leaf.prefix]:
                leaves.discard(leaf)
                pinned.append(leaf)
                continue
            self._evict(leaf, value)
            if shared:
                leaves.update(above)
        for leaf in pinned:
            self._update(leaf)
        return self._memory.free_bytes >= size

    def process_ended(self, process: int) -> None:
        """`process` has ended: do not count it among the users of prefixes any longer."""
        self.expected_returns.process_ended(process)
        for node in self._of_process.pop(process, ()):
            node.users.pop(process, None)
            self._update(node)

    # ---- inside

    def _bytes(self, prefix: Prefix) -> int:
        return self._memory.prefix_bytes(prefix.start, prefix.end)

    def _touch(self, node: RadixNode, process: int) -> None:
        node.last = self._now()
        node.uses += 1
        if node.uses == 1:
            node.first = node.last
        if process:
            node.users[process] = self.expected_returns.last_call(process)
            self._of_process.setdefault(process, set()).add(node)
        self._update(node)

    def _split(self, node: RadixNode, count: int) -> RadixNode:
        upper = node.split(count)
        self._nodes[node.prefix] += 1
        for process in upper.users:
            self._of_process[process].add(upper)
        if node.in_memory:
            self._nodes_in_memory[node.prefix] += 1
        self._update(node)  # it has become shorter
        return upper

    def _set_in_memory(self, node: RadixNode) -> None:
        """Count `node` among the nodes that need their prefix in memory. The data is there already."""
        node.in_memory = True
        self._nodes_in_memory[node.prefix] += 1
        if node.parent is not None:
            node.parent.children_in_memory += 1
            self._update(node.parent)
        self._update(node)

    def _leave_memory(self, node: RadixNode) -> None:
        """Free the memory of the prefix of `node`, unless other nodes still need that prefix in memory."""
        if node.in_memory:
            node.in_memory = False
            self._nodes_in_memory[node.prefix] -= 1
            if not self._nodes_in_memory[node.prefix]:
                del self._nodes_in_memory[node.prefix], self._pins[node.prefix]
                self._memory.cached -= self._bytes(node.prefix)
                node.prefix.data = None
            if node.parent is not None:
                node.parent.children_in_memory -= 1
                self._update(node.parent)
            self._update(node)

    def _drop_prefix(self, prefix: Prefix) -> None:
        """One node fewer has `prefix`. When no node has it any more, free its copy on disk."""
        self._nodes[prefix] -= 1
        if not self._nodes[prefix]:
            del self._nodes[prefix]
            prefix.disk_copy = None

    def _room_for(self, node: RadixNode, size: int) -> bool:
        """Like `make_room`, for the data of `node`: evict neither `node` nor its parent."""
        above = node.parent
        assert above is not None
        self._pins[above.prefix] += 1
        node.prefix.filling = True
        fits = self.make_room(size)
        node.prefix.filling = False
        self._pins[above.prefix] -= 1
        self._update(node)
        return fits

    def _copy_in(self, node: RadixNode, slab: Slab) -> bool:
        """Have the KV of `node` in memory: copy it from `slab` if necessary. Returns False if that is not possible."""
        if node.prefix.filling:
            return False
        if node.prefix.data is None:
            size = self._memory.prefix_bytes(node.start, node.end)
            if not self._room_for(node, size):
                return False
            prefix = self._memory.copy_prefix(slab, node.start, node.end)
            if prefix is None:
                return False
            self._memory.cached += size
            if self._nodes[node.prefix]:  # the node had another prefix, on disk
                self._nodes[prefix] += 1
                self._drop_prefix(node.prefix)
            node.prefix = prefix
        self._set_in_memory(node)
        return True

    # ---- eviction

    def _update(self, node: RadixNode) -> None:
        """The place of `node` among the evictable nodes may have changed."""
        self._leaves.update(node)
        self._leaves_on_disk.update(node)

    def _evict(self, leaf: RadixNode, value: float) -> None:
        """Free the memory of `leaf`: swap its KV to disk if that is worth the time, else discard it."""
        if leaf.prefix.disk_copy is not None or self._write_to_disk(leaf, value):
            self._leave_memory(leaf)
        else:
            self._remove(leaf)

    def _write_to_disk(self, leaf: RadixNode, value: float) -> bool:
        """Write the prefix of `leaf` to disk. Returns False if it is not worth its place there, or a write fails."""
        prefix = leaf.prefix
        size = self._bytes(prefix)
        if not (leaf.users or leaf.uses > 1) or not self.disk_cache.may_write(size):
            return False
        if self.rates.writing(size) + self.rates.reading(size) > self.rates.computing(prefix.start, prefix.end):
            return False
        while self.disk_cache.used + size > self.disk_cache.limit:
            least = self._leaves_on_disk.least()
            if least is None or least[1] >= value:
                return False
            self._remove(least[0])
        return self.disk_cache.write(prefix)

    def _remove(self, node: RadixNode) -> None:
        """Discard `node` and all nodes below it."""
        removed = [node, *node.below()]
        for each in removed:
            self.evicted += len(each.tokens)
            self._leave_memory(each)
            self._drop_prefix(each.prefix)
            for process in each.users:
                self._of_process[process].discard(each)
        above = node.parent
        node.cut()
        for each in removed:
            each.parent = None
            self._update(each)
        if above is not None:
            self._update(above)

    def _value(self, node: RadixNode, now: float) -> float:
        """Seconds to get the KV of `node` again, divided by its bytes and by the seconds until its likely next use."""
        size = self._memory.prefix_bytes(node.start, node.end)
        cost = self.rates.computing(node.start, node.end)
        if node.prefix.disk_copy is not None:
            cost = min(cost, self.rates.reading(size))
        away = self.expected_returns.remaining(node.users, now)
        return cost / (size * seconds_until_use(now, node.first, node.last, node.uses, away))


def _is_leaf(node: RadixNode) -> bool:
    """Whether `node` is in memory and no node below it is. A read pins the node above the one that it fills."""
    return node.in_memory and not node.children_in_memory and node.parent is not None


def _is_unshared_leaf(node: RadixNode) -> bool:
    return len(node.users) <= 1 and _is_leaf(node)


def _removable(node: RadixNode) -> bool:
    """Whether `node` is only on disk, and nothing continues or reads it."""
    on_disk = not node.in_memory and node.prefix.disk_copy is not None
    return on_disk and not (node.children or node.prefix.filling) and node.parent is not None
