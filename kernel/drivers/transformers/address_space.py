"""Finds virtual memory for the slabs of a model, where the system limits it.

`model_builder` calls it once. Slabs take much more virtual memory than they will ever fill, and `ulimit -v`, a
container or strict overcommit may allow less: then the model gets fewer slabs. This module never limits memory itself.
"""

from __future__ import annotations

import resource

import psutil
import torch

from ipc.errors import ModelLoadFailed
from kernel.drivers.transformers.kv import Geometry, KVMemory

ADDRESS_SPACE = 1 << 42  # bytes of virtual memory for slabs, unless the system allows less
SHARE = 0.5  # of the virtual memory that is left, the share for slabs; threads, weights and swap files need the rest
MAX_SLABS = 1024  # one for each sequence that runs or is parked in memory
LEAST_SLABS = 2  # `hf_backend.check` needs two


def limit() -> int | None:
    """The limit of this process's virtual memory in bytes (`ulimit -v`); None if there is none."""
    bytes_allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if bytes_allowed == resource.RLIM_INFINITY else bytes_allowed


def room() -> int:
    """How many bytes of virtual memory the slabs may take."""
    allowed = limit()
    if allowed is None:
        return ADDRESS_SPACE
    return min(ADDRESS_SPACE, max(0, int(SHARE * (allowed - psutil.Process().memory_info().vms))))


def kv_memory(geometry: Geometry, capacity: int, device: torch.device, space: int) -> KVMemory:
    """KV memory with as many slabs of `capacity` tokens as fit in `space` bytes, if the system allows so many.

    Raises `ModelLoadFailed` if it does not allow even `LEAST_SLABS`.
    """
    size = capacity * geometry.token_bytes
    slabs = max(LEAST_SLABS, min(MAX_SLABS, space // size))
    while True:
        try:
            return KVMemory(geometry, capacity, slabs, device, space)
        except OSError as error:
            if slabs == LEAST_SLABS:
                raise ModelLoadFailed(_refusal(slabs * size, capacity)) from error
            slabs = max(LEAST_SLABS, slabs // 4)  # leaves the larger part for other uses


def _refusal(size: int, capacity: int) -> str:
    allowed = limit()
    cause = "the system" if allowed is None else f"the limit of {allowed >> 20} MiB (ulimit -v)"
    advice = "allow more virtual memory" if allowed is None else "raise the limit (systemd: LimitAS)"
    return (
        f"{cause} leaves no {size >> 20} MiB of virtual memory for the KV caches of {LEAST_SLABS} sequences of "
        f"{capacity} tokens; {advice}, or use a model with a shorter context"
    )
