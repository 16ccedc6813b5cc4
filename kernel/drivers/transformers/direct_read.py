"""Reads weights from their files without transformers, for models that the decoder runs.

`weights` calls `plan` after a load through transformers: it compares all that `read` would read with the tensors that
transformers has loaded, bit for bit. Only if they are equal do later starts call `read`. Neither ever changes a tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from kernel.drivers.transformers.checkpoint import HEAD, has_headers, in_full, some, tensors
from kernel.drivers.transformers.tuning_cache import digest

EMBEDDINGS = "model.embed_tokens.weight"
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes

Weights = Mapping[str, torch.Tensor]


class ReadPlan(msgspec.Struct, frozen=True):
    """How to read the weights of a model without transformers.

    `tensors` is a hash of the names, shapes and types of the tensors, as the headers of the files have them. `tied`:
    the head of the model is its embeddings.
    """

    tensors: str
    tied: bool


def plan(name: str, files: list[Path], weights: Weights) -> ReadPlan | None:
    """The plan for the model called `name`, whose `weights` transformers has loaded from `files`.

    None if `read` would read other weights; the log then has the first difference.
    """
    if not has_headers(files):
        return None
    difference = _first_difference(files, weights)
    if difference is not None:
        print(f"each start loads {name} through transformers: {difference}", file=sys.stderr, flush=True)
        return None
    return ReadPlan(_hash(files), _is_tied(weights))


def read(plan: ReadPlan, files: list[Path], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor] | None:
    """All weights, as `dtype`; None if `files` hold other tensors than at the time of `plan`.

    Weights that have this type in the file stay mapped from it: they are never changed.
    """
    if not has_headers(files) or _hash(files) != plan.tensors:
        return None
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        weights |= load_file(file)
    weights = {in_full(name): weight.to(device, dtype) for name, weight in weights.items()}
    if plan.tied:  # a file has one of the two, or both with equal bits
        weights[EMBEDDINGS] = weights[HEAD] = weights[EMBEDDINGS if EMBEDDINGS in weights else HEAD]
    return weights


def _hash(files: list[Path]) -> str:
    return digest(sorted(tensors(files).items()))


def _is_tied(weights: Weights) -> bool:
    return bool(weights[HEAD].data_ptr() == weights[EMBEDDINGS].data_ptr())


def _first_difference(files: list[Path], weights: Weights) -> str | None:
    """The first difference between `weights` and what `read` would read. One tensor at a time is in memory."""
    absent, dtype = set(weights), weights[EMBEDDINGS].dtype
    for file in files:
        with safe_open(file, "pt") as opened:
            for tensor in opened.keys():  # noqa: SIM118 # it is no dict
                name = in_full(tensor)
                if name not in weights:
                    continue  # a tensor without effect, else `loaded_tensors` would have refused the model
                absent.discard(name)
                if not _equal_bits(opened.get_tensor(tensor).to(weights[name].device, dtype), weights[name]):
                    return f"{tensor} in {file.name} has other numbers than in transformers' model"
    if _is_tied(weights) and len(absent & {HEAD, EMBEDDINGS}) == 1:
        absent -= {HEAD, EMBEDDINGS}
    return f"the files have no {some(sorted(absent))}" if absent else None


def _equal_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    integers = INTEGERS[one.element_size()]
    return bool(torch.equal(one.contiguous().view(integers), other.contiguous().view(integers)))
