"""A prefix cache with a clock, a disk and made-up KV, and a check of its accounting.

A token's numbers depend on all tokens before it, so KV of another text is noticed. The tests of prefixes and of
eviction use it. It never runs a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="KV memory is a tensor (extra `local`)")

from kernel.drivers.transformers.kv import Geometry, KVMemory, Slab  # noqa: E402
from kernel.drivers.transformers.prefix import PrefixCache  # noqa: E402
from kernel.drivers.transformers.prefix_disk_cache import DiskRead  # noqa: E402

GEOMETRY = Geometry(layers=2, heads=1, head_dim=16, dtype=torch.float32)  # 32 tokens to a page
LENGTH = 160


class Cache:
    """A cache with `pages` pages of memory for each layer, and `on_disk` pages of disk.

    Its clock stands still unless a test sets it. `computed` makes a slab with the KV of some tokens.
    """

    def __init__(self, pages: int = 10_000, *, on_disk: int = 0) -> None:
        self.now = 0.0
        self.memory = KVMemory(GEOMETRY, LENGTH, 16, torch.device("cpu"), 0)
        self.memory.budget = pages * self.page
        self.folder = tempfile.TemporaryDirectory()
        self.tree = PrefixCache(self.memory, self.folder.name, on_disk * self.page, lambda: self.now)
        self.tree.rates.token = 1.0  # expensive: every prefix that may go to disk goes there

    @property
    def page(self) -> int:
        """Bytes of a page of tokens, in all layers."""
        return GEOMETRY.layers * 4096

    def computed(self, tokens: list[int]) -> Slab:
        slab = self.memory.allocate(0)
        self.memory.tokens(slab, 0, len(tokens)).copy_(numbers(tokens))
        return slab

    def keep(self, tokens: list[int], process: int = 0) -> None:
        slab = self.computed(tokens)
        self.tree.insert(slab, tokens, process)
        self.memory.free(slab)

    def use(self, tokens: list[int], process: int = 0) -> Slab:
        slab = self.memory.allocate(0)
        found = self.tree.pin(slab, tokens)
        self.tree.use(slab, tokens[:found], process)

        assert slab.length == found
        assert torch.equal(self.memory.tokens(slab, 0, found), numbers(tokens[:found]))
        return slab

    def free(self, slab: Slab) -> None:
        self.tree.unpin(slab)
        self.memory.free(slab)

    def texts(self) -> list[list[int]]:
        """The cached texts, from the root to each leaf."""
        return [tokens for tokens, _ in self._walk()]

    def fetch(self, tokens: list[int]) -> None:
        """Read all cached parts of `tokens` into memory."""
        while isinstance(fetch := self.tree.start_read(tokens, 0), DiskRead):
            self.tree.finish_read(fetch, fetch.read())
        assert fetch == ""

    def on_disk(self, tokens: list[int]) -> int:
        """How many of `tokens` are on disk only."""
        return sum(count for node, count in self.tree._root.path(tokens) if not node.in_memory)

    def check_books(self) -> None:
        prefixes = {node.prefix for _, nodes in self._walk() for node in nodes if node.in_memory}
        assert all(prefix.data is not None for prefix in prefixes)
        copies = {node.prefix.disk_copy for _, nodes in self._walk() for node in nodes if node.prefix.disk_copy}
        assert self.tree.disk_cache.used == sum(copy.size for copy in copies) <= self.tree.disk_cache.limit
        prefixes |= {node.prefix for _, nodes in self._walk() for node in nodes if node.prefix.filling}
        assert self.memory.cached == sum(self.memory.prefix_bytes(prefix.start, prefix.end) for prefix in prefixes)
        prefixes = {prefix for prefix in prefixes if not prefix.filling}
        assert set(self.tree._nodes_in_memory) == prefixes
        nodes = {node for _, nodes in self._walk() for node in nodes}
        assert sum(self.tree._nodes_in_memory.values()) == sum(node.in_memory for node in nodes)
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
                assert node.in_memory or not child.in_memory
                assert child.in_memory or child.prefix.disk_copy is not None or child.prefix.filling
                stack.append((child, tokens + child.tokens, [*nodes, child]))
            if nodes and not node.children:
                yield tokens, nodes


def numbers(tokens: list[int]) -> Any:
    """[layers, tokens, row]: for each token, numbers that depend on all tokens before it."""
    digest, rows = blake2b(), []
    for token in tokens:
        digest.update(bytes([token]))
        rows.append(int.from_bytes(digest.copy().digest()[:3], "little"))
    return torch.tensor(rows, dtype=torch.float32)[None, :, None].expand(GEOMETRY.layers, -1, GEOMETRY.row)
