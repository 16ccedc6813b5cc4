"""A machine on which every circumstance that may change the bits of a result changes them.

Real processors and libraries differ in what matters: on some, a prompt's token has the same bits as a generated one
unless the context is long or the heads are large. The trials of planted faults run here, so that each fault shows
everywhere. What the drivers promise must hold here too. It adds to the real machine, and never hides what that does.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernel.drivers.transformers import linear
from kernel.drivers.transformers.attention import AttentionPlan
from kernel.drivers.transformers.linear import Linear
from tests.support import random_calls

MODEL = "sensitive"
SAFE_MULTIPLE = 64  # tokens; other lengths of a context change the attention of generated tokens
PLACE, GENERATED, LENGTH, ROWS = 2.0**-20, 2.0**-12, 2.0**-11, 2.0**-10  # relative changes, which never cancel out


def pretend(patch: pytest.MonkeyPatch) -> None:
    """Compute on the sensitive machine, and define its `MODEL`.

    The shape of the model is one that no other model has: results of measurements are cached by the shape.
    """
    patch.setitem(linear.CPU_KERNELS, MODEL, _pack)
    patch.setitem(random_calls.MODELS, MODEL, ("Llama", MODEL, {"head_dim": 24}))
    batch, tile = AttentionPlan._attend_batch, AttentionPlan._attend_tile

    def attend_batch(self: AttentionPlan, number: int, *arguments: Any) -> torch.Tensor:
        unsafe = self._batches[number].length % SAFE_MULTIPLE != 0
        return batch(self, number, *arguments) * (1 + GENERATED + LENGTH * unsafe)

    def attend_tile(self: AttentionPlan, number: int, *arguments: Any) -> torch.Tensor:
        found = tile(self, number, *arguments)
        places = self._tiles[number].offset + torch.arange(len(found))
        return found * (1 + PLACE * places)[:, None, None, None]

    patch.setattr(AttentionPlan, "_attend_batch", attend_batch)
    patch.setattr(AttentionPlan, "_attend_tile", attend_tile)


def _pack(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """Matrices whose results depend on whether the count of rows is odd."""
    layer = linear.pack_plain(weight, bias)
    return lambda rows: layer(rows) * (1 + ROWS * (len(rows) % 2))
