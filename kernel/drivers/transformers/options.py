"""The options that this driver accepts for a model, checked before anything heavy is imported.

`__main__` reads them once from `Load.options`. It never resolves a default that depends on the machine: `weights`,
`model_builder` and `engine_builder` do.
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
    """The driver options from a model's settings; None leaves the choice to the driver.

    The driver's choices: `device`: the GPU if there is one. `dtype` of the weights: float32 or float16 on a CPU,
    depending on which is faster there; bfloat16 on CUDA. `threads`: one for each core that the kernel names, or torch's
    own count. `kv_memory`, bytes for the KV cache: half of the memory that is free after loading. `kv_quota`, the bytes
    of it that one process may use: all. `kv_disk`, bytes on disk for prefixes that are likely to be used again (0:
    none): four times the KV memory.

    `deterministic`: a sequence's tokens do not depend on its neighbours. None means yes on a CPU, where that is cheap.
    """

    device: Annotated[str, Meta(pattern=r"^(cpu|cuda(:\d+)?)$")] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    threads: Annotated[int, Meta(ge=1)] | None = None
    kv_memory: Annotated[int, Meta(ge=1)] | None = None
    kv_quota: Annotated[int, Meta(ge=1)] | None = None
    kv_disk: Annotated[int, Meta(ge=0)] | None = None
    deterministic: bool | None = None


def parse(options: dict[str, Any]) -> Options:
    """Check and convert `options`. Raises `ConfigError`, which lists the allowed ones."""
    try:
        return msgspec.convert(options, Options)
    except msgspec.ValidationError as error:
        raise ConfigError(f"model options {options}: {error}. Allowed: {ALLOWED}", options=sorted(options)) from error
