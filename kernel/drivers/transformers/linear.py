"""Linear layers, packed for the device: which kernel is the fastest is measured, not assumed.

Used by `decoder` and, through `replace`, in models that have none of their own. Rows are tokens; results are float32 on
a CPU. Packing copies the weights, so that those of the model can be given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear

Linear = Callable[[torch.Tensor], torch.Tensor]
Pack = Callable[[torch.Tensor, torch.Tensor | None], Linear]

ROWS = 16  # of the trial that decides between kernels: about what a busy machine decodes at once
REPETITIONS = 5


def plain(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The weights as they are, in the arithmetic of their type."""
    weight = weight.contiguous()
    return lambda rows: linear(rows, weight, bias)


def half(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """Weights in float16, activations and sums in float32: half the bytes to read, and little is lost."""
    packed = torch.ops.quantized.linear_prepack_fp16(
        weight.float().contiguous(), None if bias is None else bias.float()
    )
    run = torch.ops.quantized.linear_dynamic_fp16
    return lambda rows: run(rows, packed)


def brain(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """Weights and activations in bfloat16, sums in float32: fast where the processor has it, and coarse."""
    weight = weight.bfloat16().contiguous()
    bias = None if bias is None else bias.bfloat16()
    return lambda rows: linear(rows.bfloat16(), weight, bias).float()


CPU_KERNELS: dict[str, Pack] = {"float32": plain, "float16": half, "bfloat16": brain}
LOSSLESS = ("float32", "float16")  # those to choose from where nobody asked for a type


def fastest(shape: tuple[int, int]) -> str:
    """The name of the faster of `LOSSLESS` for `ROWS` rows and weights of that shape, by a trial."""
    weight, rows = torch.randn(shape), torch.randn(ROWS, shape[1])
    times = {}
    for name in LOSSLESS:
        if name == "float16" and "fbgemm" not in torch.backends.quantized.supported_engines:
            continue
        layer = CPU_KERNELS[name](weight, None)
        layer(rows)
        times[name] = min(_timed(layer, rows) for _ in range(REPETITIONS))
    return min(times, key=times.__getitem__)


def replace(model: torch.nn.Module, pack: Pack) -> None:
    """Put packed layers in the place of all of `model`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, _Packed(pack(child.weight, child.bias), child.weight.dtype))


class _Packed(torch.nn.Module):  # type: ignore[misc] # torch is not followed
    """A packed layer as a module: any leading dimensions."""

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
