"""Finds by trial the safe counts of rows and lengths of contexts: a token's numbers then depend on no other sequence.

For some counts of rows, matrix kernels sum a row in a different order; so does attention for some lengths and batches.
Processor, library, type and threads decide for which. `model_builder` runs the trials once per machine and stores the
results in `tuning_cache`; `forward` pads steps to safe counts. This module never pads anything itself.
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

MAX_ROWS = 512  # rows in a step
CANDIDATES = (*range(1, 65), *range(72, 129, 8), *range(144, MAX_ROWS + 1, 16))
# All candidates are compared with each of these counts; the one that most candidates agree with is correct.
REFERENCES = (16, 32, 64, 8)
TRIAL_NUMBERS = 4096  # how many numbers an activation is tried with
MAX_OUTPUTS = 256  # how many outputs of a matrix are tried: all outputs are computed in the same way
ROW_SHIFT = 3  # rows; the trial also moves each row by as many, because its place in the step must not matter either
TRIAL_SLABS = 8  # slabs in the trial of attention
SLAB_CHOICES = (slice(None), slice(0, None, 2), slice(1, 2), slice(TRIAL_SLABS - 3, None))  # each evenly spaced
TRIAL_POSITIONS = (0, 5, 33, 100, 127, 199, 300, 400, 500, 513, 640, 777, 1000)

Counts = tuple[int, ...]


class RowCounts:
    """The safe counts of rows: at these, a row gets the same bits beside any other rows."""

    def __init__(self, safe: Counts) -> None:
        self.safe = safe
        self.largest = safe[-1]

    def padded(self, count: int) -> int:
        """The smallest safe count that is at least `count`. `count` must be at most `largest`."""
        return self.safe[bisect.bisect_left(self.safe, count)]


def safe_row_counts(shapes: Iterable[tuple[int, int]], pack: Pack) -> Counts:
    """The counts at which matrices of all `shapes` (rows and columns of the weight) are safe; perhaps none."""
    trial_shapes = {(min(rows, MAX_OUTPUTS), columns) for rows, columns in shapes}
    return tuple(sorted(set.intersection(*(_safe_for_shape(shape, pack) for shape in trial_shapes))))


def safe_activation_counts(activation: Callable[[torch.Tensor], torch.Tensor], size: int) -> Counts:
    """The counts at which an elementwise `activation` is safe for rows of `size`.

    Some counts are not safe, because the last numbers of a thread's share may be computed in another way than the rest.
    The trial uses numbers for which the two ways give different bits.
    """
    generator = torch.Generator().manual_seed(0)
    numbers = 3 * torch.randn(TRIAL_NUMBERS, generator=generator)
    sensitive = numbers[torch.cat([activation(number) for number in numbers.split(1)]) != activation(numbers)]
    if not len(sensitive):
        return CANDIDATES
    rows = sensitive[torch.randint(len(sensitive), (MAX_ROWS + 64, size), generator=generator)]
    return tuple(sorted(_agreeing(activation, rows)))


def safe_lengths(geometry: Geometry, queries: int) -> Counts:
    """The lengths of the last block at which a generated token gets the same numbers in every batch.

    `queries`: query heads per kv head. The trial attends to random keys and values in two blocks; the result for a full
    last block is taken as correct.
    """
    trial = _AttentionTrial(geometry, queries)
    expected = {length: trial.attend(slice(None), length, BLOCK) for length in TRIAL_POSITIONS}
    safe = []
    for padded in range(UNIT, BLOCK + 1, UNIT):
        fitting = [length for length in TRIAL_POSITIONS if length % BLOCK < padded]
        if all(
            torch.equal(trial.attend(places, length, padded), expected[length][places])
            for length in fitting
            for places in SLAB_CHOICES
        ):
            safe.append(padded)
    return tuple(safe)


class _AttentionTrial:
    """Slabs with random keys and values of one layer, and one query token for each slab."""

    def __init__(self, geometry: Geometry, queries: int) -> None:
        self._geometry = geometry._replace(layers=1)
        self._memory = KVMemory(self._geometry, 2 * BLOCK, TRIAL_SLABS, torch.device("cpu"), sys.maxsize)
        self._slabs = [self._memory.allocate(0) for _ in range(TRIAL_SLABS)]
        generator = torch.Generator().manual_seed(0)
        for slab in self._slabs:
            rows = self._memory.tokens(slab, 0, 2 * BLOCK)
            rows.copy_(torch.randn(rows.shape, generator=generator))
        self._queries = torch.randn(TRIAL_SLABS, geometry.heads, queries, geometry.head_dim, generator=generator)

    def attend(self, places: slice, length: int, padded: int) -> torch.Tensor:
        """The attention of the token at position `length` in each of these slabs, with the last block `padded`."""
        for slab in self._slabs[places]:
            slab.length = length
        spans = [Span(slab, [0], generated=True) for slab in self._slabs[places]]
        plan = AttentionPlan(spans, self._memory, SafeLengths((padded,)))
        return plan.attend(0, self._queries[places].to(self._geometry.dtype), self._geometry.head_dim**-0.5)


def _safe_for_shape(shape: tuple[int, int], pack: Pack) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    matrix = pack(torch.randn(shape, generator=generator) / shape[1] ** 0.5, None)
    epsilon = torch.zeros(1, 1)
    rows = torch.randn(MAX_ROWS + 64, shape[1], generator=generator)
    return _agreeing(lambda some: matrix(normed(some, epsilon)), rows)


def _agreeing(layer: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> set[int]:
    """The counts at which `layer` gives each of `rows` the bits that the majority of counts give it."""
    found: set[int] = set()
    for reference in REFERENCES:
        expected = torch.cat([layer(part) for part in rows.split(reference)])
        agreeing = {
            count
            for count in CANDIDATES
            if torch.equal(layer(rows[:count]), expected[:count])
            and torch.equal(layer(rows[ROW_SHIFT : ROW_SHIFT + count]), expected[ROW_SHIFT : ROW_SHIFT + count])
        }
        found = max(found, agreeing, key=len)
        if len(found) > len(CANDIDATES) // 2:
            break
    return found
