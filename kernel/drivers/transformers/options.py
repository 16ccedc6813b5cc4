"""The options that this driver accepts for a model, checked before anything heavy is imported.

`__main__` reads them once from `Load.options`. This module never chooses a default that depends on the machine:
`weights`, `model_builder` and `engine_builder` do.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ipc.errors import ConfigError

ALLOWED = (
    "device (cpu, cuda, cuda:N), dtype (float32, bfloat16, float16), threads (1 or more), kv_memory (bytes), "
    "kv_quota (bytes), kv_disk (bytes), deterministic (true, false)"
)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The driver options from a model's settings. None leaves the choice to the driver.

    - `device` to run on. The driver chooses the GPU if there is one.
    - `dtype` of the weights. On a CPU the driver chooses float32 or float16, the faster one; on CUDA bfloat16.
    - `threads` that compute. The driver takes one for each core that the kernel names, or torch's default number.
    - `kv_memory`: bytes for the KV cache, unless the kernel sets them. The driver takes half of the memory that is free
      after loading.
    - `kv_quota`: bytes of KV memory that one process may use. None sets no bound.
    - `kv_disk`: bytes on disk for cached prefixes; 0 turns them off. The driver takes four times the KV memory.
    - `deterministic`: a sequence's tokens do not depend on its neighbours. None means yes on a CPU. On a GPU
      and for mixtures of experts the driver never ensures it.
    """

    device: Annotated[str, Meta(pattern=r"^(cpu|cuda(:\d+)?)$")] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    threads: Annotated[int, Meta(ge=1)] | None = None
    kv_memory: Annotated[int, Meta(ge=1)] | None = None
    kv_quota: Annotated[int, Meta(ge=1)] | None = None
    kv_disk: Annotated[int, Meta(ge=0)] | None = None
    deterministic: bool | None = None


def parse(options: dict[str, Any]) -> Options:
    """Check and convert `options`. Raises `ConfigError`, which lists the allowed options."""
    try:
        return msgspec.convert(options, Options)
    except msgspec.ValidationError as error:
        raise ConfigError(f"model options {options}: {error}. Allowed: {ALLOWED}", options=sorted(options)) from error
