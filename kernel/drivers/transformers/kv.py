"""Memory for keys and values: one contiguous slab per sequence, out of a fixed budget.

Owned by the engine; written and read by `attention`, by views, so that nothing is gathered. All slabs lie at equal
distances in one range of virtual memory, so that any two of them (and any evenly spaced row) are one strided batch.
Layout: [slab, layer, token, key or value, head, head dim]. It decides nothing about who gets memory.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch

from kernel.drivers.transformers.pages import PAGE, PageStore, Range, Segment, most_areas

UNIT = 32  # tokens; capacities are multiples, so that what attention reads beyond the last token lies in the slab


class Geometry(NamedTuple):
    """What a token takes: in `layers` layers a key and a value of `heads` heads each."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def row(self) -> int:
        """Numbers of one token in one layer."""
        return 2 * self.heads * self.head_dim

    @property
    def row_bytes(self) -> int:
        return self.row * int(self.dtype.itemsize)

    @property
    def token_bytes(self) -> int:
        return self.layers * self.row_bytes


def maps(device: torch.device) -> bool:
    """Whether memory is mapped, so that slabs take none until they are used, and prefixes are shared."""
    return device.type == "cpu" and sys.platform == "linux"


class Slab:
    """A place for the keys and values of one sequence, `length` tokens of them so far.

    `index` says where; `reserved` tokens of the budget are its own; `shares` counts what is mapped into it.
    """

    __slots__ = ("index", "length", "reserved", "shares")

    def __init__(self, index: int, reserved: int) -> None:
        self.index = index
        self.length = 0
        self.reserved = reserved
        self.shares = 0


class Prefix:
    """The keys and values of the tokens from `start` to `end` of some text, kept to be used again.

    `data` is where they are in memory, None if they are not; `copy` where on disk. `coming`: they are being read.
    """

    __slots__ = ("coming", "copy", "data", "end", "start")  # by identity: one object, kept once

    def __init__(self, start: int, end: int, data: Segment | torch.Tensor | None) -> None:
        self.start = start
        self.end = end
        self.data = data
        self.copy: Segment | None = None
        self.coming = False


class KVMemory:
    """`slabs` slabs of `capacity` tokens each, of which together no more than `budget` bytes are handed out."""

    def __init__(self, geometry: Geometry, capacity: int, slabs: int, device: torch.device, budget: int) -> None:
        # In whole pages, so that a token of every layer lies at the same distance from the start of a page.
        step = math.lcm(UNIT, PAGE // math.gcd(PAGE, geometry.row_bytes))
        self.geometry = geometry
        self.capacity = -(-capacity // step) * step
        self.device = device
        self.budget = budget
        self.used = 0  # bytes handed out to slabs
        self.cached = 0  # bytes of prefixes that are kept
        self._free = list(range(slabs))
        layer = self.capacity * geometry.row
        slab = geometry.layers * layer
        self._shares = most_areas() // 4  # that may still be mapped, in all slabs: half of all areas are others'
        self._range: Range | None = None
        if maps(device):
            self._range = Range(slabs * slab * geometry.dtype.itemsize)
            self._store = PageStore()
            flat = self._range.tensor(geometry.dtype)
        else:
            flat = torch.zeros(slabs * slab, dtype=geometry.dtype, device=device)
        self._flat = flat
        rows = flat.view(-1, geometry.row)
        self.rows = [rows[number * self.capacity :] for number in range(geometry.layers)]  # of one layer, by `row_of`
        self._strides = (slab, geometry.heads * geometry.head_dim, geometry.head_dim, geometry.row, 1)
        self._layer = layer

    # ---- books

    def size(self, tokens: int) -> int:
        """Bytes that `tokens` tokens take."""
        return tokens * self.geometry.token_bytes

    @property
    def free_bytes(self) -> int:
        """What is left of the budget, less than nothing after it was lowered."""
        return self.budget - self.used - self.cached

    @property
    def free_slabs(self) -> int:
        return len(self._free)

    def allocate(self, tokens: int) -> Slab:
        """A slab with room for `tokens` tokens of its own; the caller has seen that they fit."""
        slab = Slab(heapq.heappop(self._free), tokens)
        self.used += self.size(tokens)
        return slab

    def reserve(self, slab: Slab, tokens: int) -> None:
        """Hand out `tokens` more tokens of the budget to `slab`."""
        slab.reserved += tokens
        self.used += self.size(tokens)

    def yield_up(self, slab: Slab) -> None:
        """Take back what was handed out to `slab`, which is about to be freed, but not yet what it holds."""
        self.used -= self.size(slab.reserved)
        slab.reserved = 0

    def free(self, slab: Slab) -> None:
        """Take back `slab`, which is not used again. What it held is gone, so that nobody reads it later."""
        self.used -= self.size(slab.reserved)
        self._shares += slab.shares
        self._clear(slab.index)
        heapq.heappush(self._free, slab.index)

    # ---- views

    def row_of(self, slab: Slab, token: int) -> int:
        """Where the token stands in each of `rows`."""
        return slab.index * self.geometry.layers * self.capacity + token

    def batch(self, layer: int, first: int, apart: int, count: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each [count, heads, tokens, head dim], of every `apart`-th slab from the `first` on."""
        slab, *rest = self._strides
        shape = (count, 2, self.geometry.heads, tokens, self.geometry.head_dim)
        start = first * slab + layer * self._layer
        both = self._flat.as_strided(shape, (apart * slab, *rest), start)
        return both.select(1, 0), both.select(1, 1)

    def tokens(self, slab: Slab, start: int, end: int) -> torch.Tensor:
        """All there is of these tokens: [layers, end - start, 2 * heads * head dim], not contiguous."""
        shape = (self.geometry.layers, end - start, self.geometry.row)
        offset = slab.index * self._strides[0] + start * self.geometry.row
        return self._flat.as_strided(shape, (self._layer, self.geometry.row, 1), offset)

    # ---- prefixes

    def keep(self, slab: Slab, start: int, end: int) -> Prefix | None:
        """A copy of these tokens, to be used again by `use`.

        None if they, or what lies in a page with them, are not all numbers: a sequence looks, masked, at more than its
        own tokens, and a NaN among them would be its end.
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

    def use(self, slab: Slab, prefix: Prefix, start: int, end: int) -> None:
        """Let the tokens of `slab` from `start` to `end` be those of `prefix`, which has them.

        If no more can be shared, they are copied and become the slab's own.
        """
        if isinstance(prefix.data, torch.Tensor):
            self.tokens(slab, start, end).copy_(prefix.data[:, start - prefix.start : end - prefix.start])
            return
        assert self._range is not None
        assert prefix.data is not None
        shared = self._shares >= self.geometry.layers
        if shared:
            self._shares -= self.geometry.layers
            slab.shares += self.geometry.layers
        else:
            self.reserve(slab, end - start)
        kept_first, kept = self._pages(prefix.start, prefix.end)
        first, pages = self._pages(start, end)
        for layer in range(self.geometry.layers):
            offset = (layer * kept + first - kept_first) * PAGE
            if shared:
                self._range.share(self._byte(slab.index, layer) + first * PAGE, pages * PAGE, prefix.data, offset)
            else:
                prefix.data.read(offset, self._raw(slab, layer, first, pages))

    def swap_out(self, prefix: Prefix, store: PageStore) -> None:
        """Copy what is kept to a file on disk. Raises `OSError`."""
        assert prefix.data is not None
        if isinstance(prefix.data, torch.Tensor):
            copy = store.segment(prefix.data.nbytes)
            copy.write(0, prefix.data.cpu().contiguous())
        else:
            copy = store.segment(prefix.data.size)
            prefix.data.copy_to(copy)
        prefix.copy = copy

    def swap_in(self, prefix: Prefix) -> Callable[[], Segment | torch.Tensor]:
        """What reads the copy of `prefix` back, in any thread; what comes back is its `data`. Raises `OSError`."""
        copy = prefix.copy
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
        """What `keep` takes for these tokens."""
        return self.geometry.layers * self._pages(start, end)[1] * PAGE

    def _pages(self, start: int, end: int) -> tuple[int, int]:
        """The first page that holds something of these tokens within a layer, and how many do."""
        first = start * self.geometry.row_bytes // PAGE
        return first, -(-end * self.geometry.row_bytes // PAGE) - first

    def _raw(self, slab: Slab, layer: int, first: int, pages: int) -> torch.Tensor:
        """So many pages of a layer, from the `first` on, as bytes."""
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
            self._flat[index * size : (index + 1) * size].zero_()  # a NaN left here would reach its next neighbours


def _all_numbers(values: torch.Tensor) -> bool:
    return bool(values.sum(dtype=torch.float32).isfinite())
