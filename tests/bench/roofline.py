"""The most that the machine can do: bytes read and multiply-adds per second, and the decode rate that follows.

Used by the decode bench. The bound is the slower of the two (S. Williams et al., "Roofline", CACM 2009): a step reads
every weight once and the KV of each sequence, and multiplies every weight once for each sequence.
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
    """The bytes that a decode step reads, and the multiply-adds that it computes."""

    bytes: int
    multiply_adds: int

    def seconds(self, machine: Machine) -> float:
        return max(self.bytes / machine.bandwidth, self.multiply_adds / machine.speed)

    def limit(self, machine: Machine) -> str:
        reading = self.bytes / machine.bandwidth > self.multiply_adds / machine.speed
        return "bytes" if reading else "sums"


class Shape(NamedTuple):
    """A dense model: its weights, the numbers of a token's KV, and the multiply-adds to attend to a token."""

    parameters: int
    kv: int
    attended: int

    def step(self, sequences: int, context: int, width: int) -> Step:
        """A step of `sequences` with `context` tokens each, in numbers of `width` bytes."""
        tokens = sequences * context
        return Step(width * (self.parameters + tokens * self.kv), sequences * self.parameters + tokens * self.attended)


def shape(config: Any, parameters: int) -> Shape:
    """The shape in a configuration of transformers."""
    per_head = 2 * config.num_hidden_layers * config.head_dim  # keys and values
    return Shape(parameters, per_head * config.num_key_value_heads, per_head * config.num_attention_heads)
