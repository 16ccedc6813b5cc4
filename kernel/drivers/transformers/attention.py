"""Attention over packed sequences. It reads the KV cache through strided views of the slabs and never gathers it.

`forward` makes one `AttentionPlan` for each step. The plan says for every token where to write its key and value, and
which tokens it attends to. Prompt tokens run in tiles of `TILE` queries at absolute positions, generated tokens in
batches that are padded to safe lengths (`batch_invariance`). So a token's numbers depend only on the tokens before it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from kernel.drivers.transformers.kv import UNIT, KVMemory, Slab

TILE = 16  # queries; in a long context a larger tile delays other sequences, and a smaller one uses the device badly
SHORTEST_CLASS = 128  # tokens; all shorter sequences may share a batch, longer ones by powers of two
# The query heads that share a kv head are padded to a multiple of this: with fewer, the place in a batch would matter.
QUERY_MULTIPLE = 4
# Tokens that torch's attention processes at a time. A length that is safe for a last block is safe after any others.
BLOCK = 512


class Span:
    """The next `tokens` of the sequence in `slab`. `generated`: they do not belong to the prompt.

    The step returns logits for the last `logits` tokens and, if `hidden` is set, the last hidden states of all tokens.
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
    """Generated tokens in evenly spaced slabs: rows `start` to `end` of the step. The first is in slab `first_slab`."""

    start: int
    end: int
    first_slab: int
    stride: int  # slabs
    length: int  # how many tokens each row reads; the mask hides the tokens beyond its position
    positions: torch.Tensor


class _Tile(NamedTuple):
    """Up to `TILE` tokens of one prompt: rows `start` to `end` of the step.

    The tile begins at `position`, a multiple of `TILE`; the tokens fill the tile from `offset` on.
    """

    start: int
    end: int
    slab: int
    position: int
    offset: int


class SafeLengths:
    """The lengths to which the context of a batch of generated tokens may be padded.

    Such a length is any number of whole blocks and a last block with a length in `safe`. If `safe` is empty, each
    generated token runs alone, and its context is padded to a multiple of `UNIT`.
    """

    def __init__(self, safe: tuple[int, ...] = tuple(range(UNIT, BLOCK + 1, UNIT))) -> None:
        self.safe = safe

    def padded(self, count: int) -> int:
        """The smallest such length that is at least `count`."""
        blocks, rest = divmod(count - 1, BLOCK)
        if not self.safe:
            return (count - 1) // UNIT * UNIT + UNIT
        place = bisect_left(self.safe, rest + 1)
        return blocks * BLOCK + (self.safe[place] if place < len(self.safe) else BLOCK + self.safe[0])


class AttentionPlan:
    """The attention of one step: where each row writes its KV, and which tokens it attends to, in every layer.

    `tokens` and `positions` list all rows in the order in which they are computed.
    """

    def __init__(self, spans: list[Span], memory: KVMemory, safe_lengths: SafeLengths) -> None:
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
        self._batches = list(_batches(queries, memory.device, safe_lengths))
        self._tiles: list[_Tile] = []
        for span in prompts:
            self._add_prompt(span, writes)
        self.count = len(self.tokens)
        self._writes = torch.tensor(writes, device=memory.device)
        self._masks: dict[tuple[int, int], torch.Tensor] = {}
        self._padded: dict[int, torch.Tensor] = {}  # the queries of a batch, padded with zeros

    def rows(self, span: Span) -> list[int]:
        """The rows that hold the tokens of `span`, in order."""
        if not span.generated:
            first = self._row_of[id(span), 0]
            return list(range(first, first + len(span.tokens)))
        return [self._row_of[id(span), offset] for offset in range(len(span.tokens))]

    def write(self, layer: int, fresh: torch.Tensor) -> None:
        """Write the first `count` rows of `fresh`, keys and values [rows, 2 * heads * head dim], into the slabs."""
        self.memory.rows[layer].index_copy_(0, self._writes, fresh[: self.count])

    def attend(self, layer: int, queries: torch.Tensor, scale: float, window: int | None = None) -> torch.Tensor:
        """The attention of one layer, [rows, heads * head dim]. Call `write` for the layer first.

        `queries` is [rows, kv heads, heads per kv head, head dim]. Rows beyond `count` are padding and get zeros.
        A token attends to the last `window` tokens, itself included; None means to all of them.
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
        grouped = queries[batch.start : batch.end]
        if group % QUERY_MULTIPLE:
            padded = self._padded.get(number)
            if padded is None:
                shape = count, queries.shape[1], group + -group % QUERY_MULTIPLE, queries.shape[3]
                padded = self._padded[number] = queries.new_zeros(shape)
            padded[:, :, :group] = grouped
            grouped = padded
        mask = self._masks.get((number, window or 0))
        if mask is None:
            tokens = torch.arange(batch.length, device=queries.device)
            mask = _mask(batch.positions, tokens, window, queries.dtype)[:, None, None]
            self._masks[number, window or 0] = mask
        keys, values = self.memory.batch(layer, batch.first_slab, batch.stride, count, batch.length)
        return scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)[:, :, :group]

    def _attend_tile(
        self, number: int, layer: int, queries: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        tile = self._tiles[number]
        _, kv_heads, group, head_dim = queries.shape
        count = tile.end - tile.start
        grouped = queries[tile.start : tile.end]
        if count < TILE:
            full = queries.new_zeros(TILE, kv_heads, group, head_dim)
            full[tile.offset : tile.offset + count] = grouped
            grouped = full
        length = tile.position + TILE
        key = -1 - tile.position, window or 0
        mask = self._masks.get(key)
        if mask is None:
            positions = torch.arange(tile.position, length, device=queries.device)
            mask = _mask(positions, torch.arange(length, device=queries.device), window, queries.dtype)
            self._masks[key] = mask = mask.repeat(group, 1)[None, None]
        keys, values = self.memory.batch(layer, tile.slab, 0, 1, length)
        # The query heads that share a kv head become rows of one query, so that no key is copied.
        folded = grouped.permute(1, 2, 0, 3).reshape(1, kv_heads, group * TILE, head_dim)
        found = scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
        found = found.view(kv_heads, group, TILE, head_dim)[:, :, tile.offset : tile.offset + count]
        return found.permute(2, 0, 1, 3)


def _mask(positions: torch.Tensor, tokens: torch.Tensor, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """[positions, tokens]: 0 where a position attends to a token, minus infinity elsewhere."""
    ages = positions[:, None] - tokens
    seen = ages >= 0
    if window is not None:
        seen &= ages < window
    return torch.where(seen, 0.0, -torch.inf).to(dtype)


def _length_class(position: int) -> int:
    """The length class of a token at `position`, a power of two. Only tokens of the same class share a batch."""
    return max(SHORTEST_CLASS, 1 << position.bit_length())


def _batches(
    queries: list[tuple[int, int, int, Span, int]], device: torch.device, safe_lengths: SafeLengths
) -> Iterator[_Batch]:
    """Cut the sorted `queries` into batches. A batch has one length class and evenly spaced slabs."""
    start = 0
    while start < len(queries):
        length_class, first_slab, *_ = queries[start]
        end, stride = start + 1, 0
        if safe_lengths.safe and end < len(queries) and queries[end][0] == length_class:
            stride = queries[end][1] - first_slab
            while (
                end < len(queries)
                and queries[end][0] == length_class
                and queries[end][1] - queries[end - 1][1] == stride
            ):
                end += 1
        positions = [position for _, _, position, *_ in queries[start:end]]
        length = safe_lengths.padded(max(positions) + 1)
        yield _Batch(start, end, first_slab, stride, length, torch.tensor(positions, device=device))
        start = end
