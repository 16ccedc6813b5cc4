"""Attention over packed sequences, without gathering their keys and values: views into the slabs, batched.

A step is a row of tokens. `AttentionPlan` says for each where its key and value are written and what it looks at, and
does that for one layer after another. Tokens of prompts go in tiles of `TILE` queries at absolute positions, generated
ones in batches that look at lengths found safe: so a token's numbers depend on the tokens before it alone (see
`batch_invariance`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from kernel.drivers.transformers.kv import UNIT, KVMemory, Slab

TILE = 16  # queries; of more, one tile would hold up its neighbours in a long context, and fewer use the device badly
SHORTEST = 128  # tokens; sequences up to this length are batched together, longer ones with those up to twice theirs
QUERIES = 4  # the queries of a generated token are a multiple: of fewer, their place in a batch would matter
BLOCK = 512  # tokens that the kernel takes at once; what is safe for a last block is so for all


class Span:
    """The next `tokens` of the sequence in `slab`. `generated`: they are not of its prompt.

    `logits`: how many of the last ones their logits are wanted of; `hidden`: the last states of all are.
    """

    __slots__ = ("end", "generated", "hidden", "logits", "slab", "start", "tokens")

    def __init__(
        self, slab: Slab, tokens: list[int], *, logits: int = 1, generated: bool = False, hidden: bool = False
    ) -> None:
        self.slab = slab
        self.tokens = tokens
        self.logits = logits
        self.generated = generated
        self.hidden = hidden
        self.start = slab.length
        self.end = slab.length + len(tokens)


class _Batch(NamedTuple):
    """Generated tokens whose slabs are evenly spaced: rows `start` to `end` of the step."""

    start: int
    end: int
    first: int  # slab
    apart: int  # slabs
    tokens: int  # looked at, some of them masked
    positions: torch.Tensor


class _Tile(NamedTuple):
    """Up to `TILE` tokens of one prompt: rows `start` to `end` of the step, from `offset` on in one at `position`."""

    start: int
    end: int
    slab: int
    position: int
    offset: int


class SafeLengths:
    """How many tokens a batch of generated tokens may look at: up to a block those in `safe`, then blocks and those.

    Where nothing is `safe` every token goes by itself.
    """

    def __init__(self, safe: tuple[int, ...] = tuple(range(UNIT, BLOCK + 1, UNIT))) -> None:
        self.safe = safe

    def padded(self, count: int) -> int:
        """The smallest length that holds `count` tokens."""
        blocks, rest = divmod(count - 1, BLOCK)
        if not self.safe:
            return (count - 1) // UNIT * UNIT + UNIT
        place = bisect_left(self.safe, rest + 1)
        return blocks * BLOCK + (self.safe[place] if place < len(self.safe) else BLOCK + self.safe[0])


class AttentionPlan:
    """What every token of a step looks at, the same in every layer.

    `tokens` and `positions` are those of all rows, in the order in which they are computed.
    """

    def __init__(self, spans: list[Span], memory: KVMemory, lengths: SafeLengths) -> None:
        self.memory = memory
        generated = [span for span in spans if span.generated]
        prompts = [span for span in spans if not span.generated]
        queries = [
            (_length_class(position), span.slab.index, position, span, offset)
            for span in generated
            for offset, position in enumerate(range(span.start, span.end))
        ]
        queries.sort(key=lambda query: query[:3])
        self.tokens = [span.tokens[offset] for *_, span, offset in queries]
        self.positions = [position for _, _, position, _, _ in queries]
        self._row_of = {(id(span), offset): row for row, (*_, span, offset) in enumerate(queries)}
        writes = [memory.row_of(span.slab, position) for _, _, position, span, _ in queries]
        self._batches = list(_batches(queries, memory.device, lengths))
        self._tiles: list[_Tile] = []
        for span in prompts:
            self._add_prompt(span, writes)
        self.count = len(self.tokens)
        self._writes = torch.tensor(writes, device=memory.device)
        self._masks: dict[tuple[int, int], torch.Tensor] = {}
        self._padded: dict[int, torch.Tensor] = {}  # queries of a batch, and zeros

    def rows(self, span: Span) -> list[int]:
        """The rows of the tokens of `span`."""
        if not span.generated:
            first = self._row_of[id(span), 0]
            return list(range(first, first + len(span.tokens)))
        return [self._row_of[id(span), offset] for offset in range(len(span.tokens))]

    def write(self, layer: int, fresh: torch.Tensor) -> None:
        """Put keys and values, [rows, 2 * heads * head dim] of which the first `count` are tokens, into the slabs."""
        self.memory.rows[layer].index_copy_(0, self._writes, fresh[: self.count])

    def attend(self, layer: int, queries: torch.Tensor, scale: float, window: int | None = None) -> torch.Tensor:
        """The attention of one layer, whose keys and values are written: [rows, heads * head dim].

        `queries` is [rows, kv heads, heads per kv head, head dim]; what comes for rows beyond `count` is zero.
        `window`: how many tokens back, itself included, a token looks; None for all.
        """
        rows, kv_heads, group, head_dim = queries.shape
        parts = [self._attend_batch(number, layer, queries, scale, window) for number in range(len(self._batches))]
        parts += [self._attend_tile(number, layer, queries, scale, window) for number in range(len(self._tiles))]
        if rows > self.count:
            parts.append(queries.new_zeros(rows - self.count, kv_heads, group, head_dim))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(rows, -1)

    def _add_prompt(self, span: Span, writes: list[int]) -> None:
        row = self._row_of[id(span), 0] = len(self.tokens)
        self.tokens += span.tokens
        self.positions += range(span.start, span.end)
        first = self.memory.row_of(span.slab, 0)
        writes += range(first + span.start, first + span.end)
        position = span.start
        while position < span.end:
            tile = position // TILE * TILE
            end = min(span.end, tile + TILE)
            start = row + position - span.start
            self._tiles.append(_Tile(start, start + end - position, span.slab.index, tile, position - tile))
            position = end

    def _attend_batch(
        self, number: int, layer: int, queries: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        batch = self._batches[number]
        count, group = batch.end - batch.start, queries.shape[2]
        asked = queries[batch.start : batch.end]
        if group % QUERIES:
            padded = self._padded.get(number)
            if padded is None:
                shape = count, queries.shape[1], group + -group % QUERIES, queries.shape[3]
                padded = self._padded[number] = queries.new_zeros(shape)
            padded[:, :, :group] = asked
            asked = padded
        mask = self._masks.get((number, window or 0))
        if mask is None:
            tokens = torch.arange(batch.tokens, device=queries.device)
            mask = _mask(batch.positions, tokens, window, queries.dtype)[:, None, None]
            self._masks[number, window or 0] = mask
        keys, values = self.memory.batch(layer, batch.first, batch.apart, count, batch.tokens)
        return scaled_dot_product_attention(asked, keys, values, attn_mask=mask, scale=scale)[:, :, :group]

    def _attend_tile(
        self, number: int, layer: int, queries: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        tile = self._tiles[number]
        _, kv_heads, group, head_dim = queries.shape
        count = tile.end - tile.start
        asked = queries[tile.start : tile.end]
        if count < TILE:
            full = queries.new_zeros(TILE, kv_heads, group, head_dim)
            full[tile.offset : tile.offset + count] = asked
            asked = full
        length = tile.position + TILE
        key = -1 - tile.position, window or 0
        mask = self._masks.get(key)
        if mask is None:
            positions = torch.arange(tile.position, length, device=queries.device)
            mask = _mask(positions, torch.arange(length, device=queries.device), window, queries.dtype)
            self._masks[key] = mask = mask.repeat(group, 1)[None, None]
        keys, values = self.memory.batch(layer, tile.slab, 0, 1, length)
        # The query heads that share a kv head become rows of it: no copy of keys.
        folded = asked.permute(1, 2, 0, 3).reshape(1, kv_heads, group * TILE, head_dim)
        found = scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
        found = found.view(kv_heads, group, TILE, head_dim)[:, :, tile.offset : tile.offset + count]
        return found.permute(2, 0, 1, 3)


def _mask(positions: torch.Tensor, tokens: torch.Tensor, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """[positions, tokens], 0 where a position may look and minus infinity elsewhere."""
    ages = positions[:, None] - tokens
    seen = ages >= 0
    if window is not None:
        seen &= ages < window
    return torch.where(seen, 0.0, -torch.inf).to(dtype)


def _length_class(position: int) -> int:
    """The most tokens that those looked at together with this one have: a power of two."""
    return max(SHORTEST, 1 << position.bit_length())


def _batches(
    queries: list[tuple[int, int, int, Span, int]], device: torch.device, lengths: SafeLengths
) -> Iterator[_Batch]:
    """Runs of `queries`, which are sorted, of one class and with slabs that are evenly spaced."""
    start = 0
    while start < len(queries):
        kind, first, *_ = queries[start]
        end, apart = start + 1, 0
        if lengths.safe and end < len(queries) and queries[end][0] == kind:
            apart = queries[end][1] - first
            while end < len(queries) and queries[end][0] == kind and queries[end][1] - queries[end - 1][1] == apart:
                end += 1
        positions = [position for _, _, position, *_ in queries[start:end]]
        tokens = lengths.padded(max(positions) + 1)
        yield _Batch(start, end, first, apart, tokens, torch.tensor(positions, device=device))
        start = end
