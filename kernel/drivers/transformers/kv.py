"""KV memory: one contiguous slab for each sequence, out of a fixed budget.

`kv_allocator` hands out the slabs; `attention` writes and reads them through views, so that no KV is gathered. All
slabs lie at equal distances in one range of virtual memory: any two slabs, or any number of evenly spaced slabs, are
one strided batch. Layout: [slab, layer, token, key or value, head, head dim]. This module never decides which request
gets memory.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch

from kernel.drivers.transformers.pages import PAGE, PageStore, Range, Segment, max_areas

UNIT = 32  # tokens; the capacity of a slab is a multiple, so that attention never reads beyond the end of a slab


class Geometry(NamedTuple):
    """The size of a token's KV: in each of `layers` layers a key and a value, both with `heads` heads."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def row(self) -> int:
        """How many numbers the KV of one token has in one layer."""
        return 2 * self.heads * self.head_dim

    @property
    def row_bytes(self) -> int:
        return self.row * int(self.dtype.itemsize)

    @property
    def token_bytes(self) -> int:
        return self.layers * self.row_bytes


def maps(device: torch.device) -> bool:
    """Whether slabs on `device` are mapped by the page: then they take memory only when written, and share prefixes."""
    return device.type == "cpu" and sys.platform == "linux"


class Slab:
    """A place for the KV of one sequence, which has `length` tokens so far.

    `index`: its number in `KVMemory`; `reserved`: how many tokens of the budget it takes; `mappings`: how many prefixes
    are mapped into it, each counted once for each layer.
    """

    __slots__ = ("index", "length", "mappings", "reserved")

    def __init__(self, index: int, reserved: int) -> None:
        self.index = index
        self.length = 0
        self.reserved = reserved
        self.mappings = 0


class Prefix:
    """The KV of the tokens from `start` to `end` of a text, to be used again. Compared and hashed by identity.

    `data`: the KV in memory, or None; `disk_copy`: the KV on disk, or None; `filling`: `data` is being read from disk.
    """

    __slots__ = ("data", "disk_copy", "end", "filling", "start")

    def __init__(self, start: int, end: int, data: Segment | torch.Tensor | None) -> None:
        self.start = start
        self.end = end
        self.data = data
        self.disk_copy: Segment | None = None
        self.filling = False


class KVMemory:
    """`slabs` slabs of at least `capacity` tokens each; slabs and prefixes together take up to `budget` bytes."""

    def __init__(self, geometry: Geometry, capacity: int, slabs: int, device: torch.device, budget: int) -> None:
        # A layer has whole pages, so that a token has the same offset in its page in every layer.
        step = math.lcm(UNIT, PAGE // math.gcd(PAGE, geometry.row_bytes))
        self.geometry = geometry
        self.capacity = -(-capacity // step) * step
        self.device = device
        self.budget = budget
        self.used = 0  # bytes reserved for slabs
        self.cached = 0  # bytes of prefixes in memory
        self._free = list(range(slabs))
        layer = self.capacity * geometry.row
        slab = geometry.layers * layer
        self._mappings_left = max_areas() // 4  # a mapping takes up to two areas; half of all areas are for other uses
        self._range: Range | None = None
        if maps(device):
            self._range = Range(slabs * slab * geometry.dtype.itemsize)
            self._store = PageStore()
            flat = self._range.tensor(geometry.dtype)
        else:
            flat = torch.zeros(slabs * slab, dtype=geometry.dtype, device=device)
        self._flat = flat
        rows = flat.view(-1, geometry.row)
        # For each layer: the KV of a token in a slab is at index `row_of`.
        self.rows = [rows[number * self.capacity :] for number in range(geometry.layers)]
        self._strides = (slab, geometry.heads * geometry.head_dim, geometry.head_dim, geometry.row, 1)
        self._layer = layer

    # ---- accounting

    def size(self, tokens: int) -> int:
        """How many bytes the KV of `tokens` tokens takes."""
        return tokens * self.geometry.token_bytes

    @property
    def free_bytes(self) -> int:
        """How many bytes of the budget are left; negative after the budget was lowered below the memory in use."""
        return self.budget - self.used - self.cached

    @property
    def free_slabs(self) -> int:
        return len(self._free)

    def allocate(self, tokens: int) -> Slab:
        """A slab that reserves `tokens` tokens; the caller has checked that they fit."""
        slab = Slab(heapq.heappop(self._free), tokens)
        self.used += self.size(tokens)
        return slab

    def reserve(self, slab: Slab, tokens: int) -> None:
        """Reserve `tokens` more tokens of the budget for `slab`."""
        slab.reserved += tokens
        self.used += self.size(tokens)

    def unreserve(self, slab: Slab) -> None:
        """Return the reservation of `slab` to the budget. The KV stays until `free`, which must follow soon."""
        self.used -= self.size(slab.reserved)
        slab.reserved = 0

    def free(self, slab: Slab) -> None:
        """Take back `slab`, which the caller must not use again, and zero it: no later sequence may read the KV."""
        self.used -= self.size(slab.reserved)
        self._mappings_left += slab.mappings
        self._clear(slab.index)
        heapq.heappush(self._free, slab.index)

    # ---- views

    def row_of(self, slab: Slab, token: int) -> int:
        """The index of the KV of `token` in each of `rows`."""
        return slab.index * self.geometry.layers * self.capacity + token

    def batch(self, layer: int, first: int, apart: int, count: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each [count, heads, tokens, head dim], of the slabs `first`, `first + apart` and so on."""
        slab, *rest = self._strides
        shape = (count, 2, self.geometry.heads, tokens, self.geometry.head_dim)
        start = first * slab + layer * self._layer
        both = self._flat.as_strided(shape, (apart * slab, *rest), start)
        return both.select(1, 0), both.select(1, 1)

    def tokens(self, slab: Slab, start: int, end: int) -> torch.Tensor:
        """A view of the KV of these tokens: [layers, end - start, 2 * heads * head dim], not contiguous."""
        shape = (self.geometry.layers, end - start, self.geometry.row)
        offset = slab.index * self._strides[0] + start * self.geometry.row
        return self._flat.as_strided(shape, (self._layer, self.geometry.row, 1), offset)

    # ---- prefixes

    def copy_prefix(self, slab: Slab, start: int, end: int) -> Prefix | None:
        """A copy of the KV of these tokens, for `map_prefix`.

        None if the copied pages contain a NaN or an infinity. Attention also reads tokens beyond a sequence's own, and
        a NaN in these would spoil its result although they are masked.
        """
        if self._range is None:
            tokens = self.tokens(slab, start, end)
            return Prefix(start, end, tokens.clone()) if _all_numbers(tokens) else None
        first, pages = self._pages(start, end)
        parts = [self._raw(slab, layer, first, pages) for layer in range(self.geometry.layers)]
        if not all(_all_numbers(part.view(self.geometry.dtype)) for part in parts):
            return None
        segment = self._store.segment(len(parts) * pages * PAGE)
        for layer, part in enumerate(parts):
            segment.write(layer * pages * PAGE, part)
        return Prefix(start, end, segment)

    def map_prefix(self, slab: Slab, prefix: Prefix, start: int, end: int) -> None:
        """Map the KV of the tokens `start` to `end`, which `prefix` has in memory, into `slab`.

        If the driver can have no more mappings, the KV is copied instead, and the slab reserves memory for the copy.
        Where slabs are not mapped, the KV is copied, too.
        """
        if isinstance(prefix.data, torch.Tensor):
            self.tokens(slab, start, end).copy_(prefix.data[:, start - prefix.start : end - prefix.start])
            return
        assert self._range is not None
        assert prefix.data is not None
        shared = self._mappings_left >= self.geometry.layers
        if shared:
            self._mappings_left -= self.geometry.layers
            slab.mappings += self.geometry.layers
        else:
            self.reserve(slab, end - start)
        prefix_first, prefix_pages = self._pages(prefix.start, prefix.end)
        first, pages = self._pages(start, end)
        for layer in range(self.geometry.layers):
            offset = (layer * prefix_pages + first - prefix_first) * PAGE
            if shared:
                self._range.share(self._byte(slab.index, layer) + first * PAGE, pages * PAGE, prefix.data, offset)
            else:
                prefix.data.read(offset, self._raw(slab, layer, first, pages))

    def write_prefix(self, prefix: Prefix, store: PageStore) -> None:
        """Copy `prefix`, which is in memory, to `store`, a file on disk. Raises `OSError`."""
        assert prefix.data is not None
        if isinstance(prefix.data, torch.Tensor):
            copy = store.segment(prefix.data.nbytes)
            copy.write(0, prefix.data.cpu().contiguous())
        else:
            copy = store.segment(prefix.data.size)
            prefix.data.copy_to(copy)
        prefix.disk_copy = copy

    def prefix_reader(self, prefix: Prefix) -> Callable[[], Segment | torch.Tensor]:
        """A function for any thread. It reads the disk copy of `prefix` and returns its `data`, or raises `OSError`."""
        copy = prefix.disk_copy
        assert copy is not None
        if self._range is not None:
            segment = self._store.segment(copy.size)

            def read() -> Segment | torch.Tensor:
                copy.copy_to(segment)
                return segment
        else:
            shape = (self.geometry.layers, prefix.end - prefix.start, self.geometry.row)

            def read() -> Segment | torch.Tensor:
                data = torch.empty(shape, dtype=self.geometry.dtype)
                copy.read(0, data)
                return data.to(self.device)

        return read

    def prefix_bytes(self, start: int, end: int) -> int:
        """How many bytes `copy_prefix` needs for these tokens."""
        return self.geometry.layers * self._pages(start, end)[1] * PAGE

    def _pages(self, start: int, end: int) -> tuple[int, int]:
        """The pages of a layer that hold these tokens: the number of the first page, and how many they are."""
        first = start * self.geometry.row_bytes // PAGE
        return first, -(-end * self.geometry.row_bytes // PAGE) - first

    def _raw(self, slab: Slab, layer: int, first: int, pages: int) -> torch.Tensor:
        """`pages` pages of a layer, from page `first` on, as bytes."""
        start = self._byte(slab.index, layer) + first * PAGE
        return self._flat.view(torch.uint8)[start : start + pages * PAGE]

    def _byte(self, index: int, layer: int) -> int:
        return (index * self._strides[0] + layer * self._layer) * int(self.geometry.dtype.itemsize)

    def _clear(self, index: int) -> None:
        size = self._strides[0]
        if self._range is not None:
            itemsize = self.geometry.dtype.itemsize
            self._range.clear(index * size * itemsize, size * itemsize)
        else:
            self._flat[index * size : (index + 1) * size].zero_()  # a NaN left here would reach later sequences


def _all_numbers(values: torch.Tensor) -> bool:
    return bool(values.sum(dtype=torch.float32).isfinite())
