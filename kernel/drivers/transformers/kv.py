"""Memory for keys and values: one contiguous slab per sequence, out of a fixed budget.

Owned by the engine, written and read by `attention`. A slab is as large as its sequence may ever grow, but memory that
was never written costs nothing on a CPU. It never shares or moves anything.
"""

from __future__ import annotations

from typing import Any

import torch


class Slab:
    """The keys and values of one sequence, `length` tokens of them: per layer [2, 1, kv heads, capacity, head dim]."""

    __slots__ = ("layers", "length")

    def __init__(self, memory: torch.Tensor) -> None:
        self.layers = memory.unbind(0)
        self.length = 0

    @property
    def capacity(self) -> int:
        return int(self.layers[0].shape[3])


class KVMemory:
    """Hands out slabs of at most `budget` bytes in all."""

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device, budget: int) -> None:
        self._layers = config.num_hidden_layers
        self._heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self._head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._dtype = dtype
        self._device = device
        self.bytes_per_token: int = 2 * self._layers * self._heads * self._head_dim * dtype.itemsize
        self.budget = budget
        self.used = 0

    def size(self, tokens: int) -> int:
        """Bytes of a slab for `tokens` tokens."""
        return tokens * self.bytes_per_token

    def fits(self, tokens: int) -> bool:
        """Whether there is room for a slab of `tokens` tokens now."""
        return self.used + self.size(tokens) <= self.budget

    def allocate(self, tokens: int) -> Slab:
        """A slab for `tokens` tokens; the caller has asked `fits`."""
        shape = (self._layers, 2, 1, self._heads, tokens, self._head_dim)
        slab = Slab(torch.empty(shape, dtype=self._dtype, device=self._device))
        self.used += self.size(tokens)
        return slab

    def free(self, slab: Slab) -> None:
        """Take back the budget of `slab`, which is not used again."""
        self.used -= self.size(slab.capacity)
