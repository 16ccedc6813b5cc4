"""What the machine could do at best: bytes read and multiply-adds done a second, and what follows for decoding.

Used by the decode bench. The bound is the slower of the two (S. Williams et al., "Roofline", CACM 2009): a step reads
every weight once and the keys and values of each sequence, and multiplies every weight once for each sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import torch

REPEATS = 15
STREAM = 1 << 29  # bytes: far more than any cache holds
SIDE = 2048  # of the square matrices


class Machine(NamedTuple):
    """`bandwidth` in bytes read a second, `speed` in multiply-adds of float32 a second, both with all threads."""

    bandwidth: float
    speed: float


def measured() -> Machine:
    stream = torch.ones(STREAM // 4)
    left, right = torch.rand(2, SIDE, SIDE)
    return Machine(STREAM / _shortest(stream.sum), SIDE**3 / _shortest(lambda: left @ right))


def _shortest(work: Callable[[], object]) -> float:
    def seconds() -> float:
        start = perf_counter()
        work()
        return perf_counter() - start

    return min(seconds() for _ in range(REPEATS))


class Step(NamedTuple):
    """What one decode step has to read and to compute."""

    bytes: int
    multiply_adds: int

    def seconds(self, machine: Machine) -> float:
        return max(self.bytes / machine.bandwidth, self.multiply_adds / machine.speed)

    def limit(self, machine: Machine) -> str:
        reading = self.bytes / machine.bandwidth > self.multiply_adds / machine.speed
        return "bytes" if reading else "sums"


class Shape(NamedTuple):
    """A dense model: its weights, and the numbers that a token adds to keys and values, and to attend to."""

    parameters: int
    kept: int
    attended: int

    def step(self, sequences: int, context: int, width: int) -> Step:
        """A step of so many sequences with `context` tokens each, in numbers of `width` bytes."""
        tokens = sequences * context
        return Step(
            width * (self.parameters + tokens * self.kept), sequences * self.parameters + tokens * self.attended
        )


def shape(config: Any, parameters: int) -> Shape:
    """By a configuration of transformers."""
    per_head = 2 * config.num_hidden_layers * config.head_dim  # keys and values
    return Shape(parameters, per_head * config.num_key_value_heads, per_head * config.num_attention_heads)
