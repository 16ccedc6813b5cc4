"""Linear layers, packed for the device. The fastest kernel is measured, never assumed.

The decoder packs its matrices with it; `replace` packs the layers of models that run through transformers' own modules.
Rows are tokens; results are float32 on a CPU. A packed layer needs only its packed weights, so the model's own layer
can be freed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear

Linear = Callable[[torch.Tensor], torch.Tensor]
Pack = Callable[[torch.Tensor, torch.Tensor | None], Linear]

TRIAL_ROWS = 16  # rows of the trial that chooses a kernel: about as many as a busy machine decodes in a step
REPETITIONS = 5


def pack_plain(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The weights as they are; all computation is in their own type."""
    weight = weight.contiguous()
    return lambda rows: linear(rows, weight, bias)


def pack_float16(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """Weights in float16, activations and sums in float32: half the bytes to read for a small loss of precision."""
    packed = torch.ops.quantized.linear_prepack_fp16(
        weight.float().contiguous(), None if bias is None else bias.float()
    )
    run = torch.ops.quantized.linear_dynamic_fp16
    return lambda rows: run(rows, packed)


def pack_bfloat16(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """Weights and activations in bfloat16, sums in float32: coarse, and fast if the processor supports the type."""
    weight = weight.bfloat16().contiguous()
    bias = None if bias is None else bias.bfloat16()
    return lambda rows: linear(rows.bfloat16(), weight, bias).float()


CPU_KERNELS: dict[str, Pack] = {"float32": pack_plain, "float16": pack_float16, "bfloat16": pack_bfloat16}
ACCURATE = ("float32", "float16")  # the kernels to choose from if no option names a type; bfloat16 is too coarse


def fastest(shape: tuple[int, int]) -> str:
    """Measure which kernel of `ACCURATE` is faster for `TRIAL_ROWS` rows and weights of `shape`; return its name."""
    weight, rows = torch.randn(shape), torch.randn(TRIAL_ROWS, shape[1])
    times = {}
    for name in ACCURATE:
        if name == "float16" and "fbgemm" not in torch.backends.quantized.supported_engines:
            continue
        layer = CPU_KERNELS[name](weight, None)
        layer(rows)
        times[name] = min(_timed(layer, rows) for _ in range(REPETITIONS))
    return min(times, key=times.__getitem__)


def replace(model: torch.nn.Module, pack: Pack) -> None:
    """Replace every linear layer of `model` by a packed one."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, _Packed(pack(child.weight, child.bias), child.weight.dtype))


class _Packed(torch.nn.Module):  # type: ignore[misc] # torch is not followed
    """A packed layer as a module. Its input may have any leading dimensions."""

    def __init__(self, layer: Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self._layer = layer
        self._dtype = dtype

    def forward(self, rows: torch.Tensor) -> Any:
        return self._layer(rows.flatten(0, -2)).unflatten(0, rows.shape[:-1]).to(self._dtype)


def _timed(layer: Linear, rows: torch.Tensor) -> float:
    start = time.perf_counter()
    layer(rows)
    return time.perf_counter() - start
