"""What makes a token's numbers depend on the tokens before it and on nothing else: found by trial on this machine.

Matrix kernels compute a row in another order of sums for some counts of rows, and attention for some sizes of batches:
which ones depends on processor, library, type and threads. `weights` asks here once and remembers the answer; steps
are padded to counts that are safe.
"""

from __future__ import annotations

import bisect
import sys
from collections.abc import Callable, Iterable

import torch

from kernel.drivers.transformers.attention import BLOCK, AttentionPlan, SafeLengths, Span
from kernel.drivers.transformers.decoder import normed
from kernel.drivers.transformers.kv import UNIT, Geometry, KVMemory
from kernel.drivers.transformers.linear import Pack

MOST = 512  # rows of a step
CANDIDATES = (*range(1, 65), *range(72, 129, 8), *range(144, MOST + 1, 16))
REFERENCES = (16, 32, 64, 8)  # counts that others are compared with: the one that most agree with is right
NUMBERS = 4096  # that an activation is tried with
COLUMNS = 256  # of a matrix that are tried: all columns are computed alike
SHIFT = 3  # rows; a result must not depend on the place either
SLABS = 8  # of the trial of attention
PLACES = (slice(None), slice(0, None, 2), slice(1, 2), slice(SLABS - 3, None))  # of slabs in a batch, evenly spaced
TRIED = (0, 5, 33, 100, 127, 199, 300, 400, 500, 513, 640, 777, 1000)  # positions

Counts = tuple[int, ...]


class RowCounts:
    """The counts of rows that are safe."""

    def __init__(self, safe: Counts) -> None:
        self.safe = safe
        self.most = safe[-1]

    def padded(self, count: int) -> int:
        """The smallest safe count that is not less; `count` is at most `most`."""
        return self.safe[bisect.bisect_left(self.safe, count)]


def row_counts(shapes: Iterable[tuple[int, int]], pack: Pack) -> Counts:
    """The counts at which matrices of all `shapes` (rows, columns of the weight) are safe; there may be none."""
    tried = {(min(rows, COLUMNS), columns) for rows, columns in shapes}
    return tuple(sorted(set.intersection(*(_safe(shape, pack) for shape in tried))))


def activation_counts(activation: Callable[[torch.Tensor], torch.Tensor], size: int) -> Counts:
    """The counts at which what is computed number by number is safe for rows of `size`.

    Not all are: what is left over at the end of a thread's share may be computed in another way than the rest. Tried
    with numbers for which that makes a difference.
    """
    generator = torch.Generator().manual_seed(0)
    numbers = 3 * torch.randn(NUMBERS, generator=generator)
    fickle = numbers[torch.cat([activation(number) for number in numbers.split(1)]) != activation(numbers)]
    if not len(fickle):
        return CANDIDATES
    rows = fickle[torch.randint(len(fickle), (MOST + 64, size), generator=generator)]
    return tuple(sorted(_agreeing(activation, rows)))


def lengths(geometry: Geometry, queries: int) -> Counts:
    """The lengths at which a generated token gets the same numbers in every batch. `queries`: heads per kv head.

    Tried on made-up keys and values in two blocks: right is what the longest length gives.
    """
    trial = _AttentionTrial(geometry, queries)
    right = {length: trial.attended(slice(None), length, BLOCK) for length in TRIED}
    safe = []
    for padded in range(UNIT, BLOCK + 1, UNIT):
        held = [length for length in TRIED if length % BLOCK < padded]
        if all(
            torch.equal(trial.attended(places, length, padded), right[length][places])
            for length in held
            for places in PLACES
        ):
            safe.append(padded)
    return tuple(safe)


class _AttentionTrial:
    """Some slabs with made-up keys and values of one layer, and a token that asks each."""

    def __init__(self, geometry: Geometry, queries: int) -> None:
        self._geometry = geometry._replace(layers=1)
        self._memory = KVMemory(self._geometry, 2 * BLOCK, SLABS, torch.device("cpu"), sys.maxsize)
        self._slabs = [self._memory.allocate(0) for _ in range(SLABS)]
        generator = torch.Generator().manual_seed(0)
        for slab in self._slabs:
            rows = self._memory.tokens(slab, 0, 2 * BLOCK)
            rows.copy_(torch.randn(rows.shape, generator=generator))
        self._asked = torch.randn(SLABS, geometry.heads, queries, geometry.head_dim, generator=generator)

    def attended(self, places: slice, length: int, padded: int) -> torch.Tensor:
        """What the token at position `length` of each of these slabs gets, `padded` long in its last block."""
        for slab in self._slabs[places]:
            slab.length = length
        spans = [Span(slab, [0], generated=True) for slab in self._slabs[places]]
        plan = AttentionPlan(spans, self._memory, SafeLengths((padded,)))
        return plan.attend(0, self._asked[places].to(self._geometry.dtype), self._geometry.head_dim**-0.5)


def _safe(shape: tuple[int, int], pack: Pack) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    matrix = pack(torch.randn(shape, generator=generator) / shape[1] ** 0.5, None)
    floor = torch.zeros(1, 1)
    rows = torch.randn(MOST + 64, shape[1], generator=generator)
    return _agreeing(lambda some: matrix(normed(some, floor)), rows)


def _agreeing(layer: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> set[int]:
    """The counts at which `layer` gives each of `rows` what it does at most others."""
    found: set[int] = set()
    for reference in REFERENCES:
        right = torch.cat([layer(part) for part in rows.split(reference)])
        agreeing = {
            count
            for count in CANDIDATES
            if torch.equal(layer(rows[:count]), right[:count])
            and torch.equal(layer(rows[SHIFT : SHIFT + count]), right[SHIFT : SHIFT + count])
        }
        found = max(found, agreeing, key=len)
        if len(found) > len(CANDIDATES) // 2:
            break
    return found
