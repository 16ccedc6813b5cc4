"""The options of a model that this driver knows, checked before anything heavy is imported.

Read once by `__main__`, from `Load.options`. It resolves no defaults that depend on the machine: `weights` does.
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
    """What the settings of a model tell the driver; None leaves the choice to the driver.

    The driver takes the GPU if there is one; for weights float32 or float16, whichever is faster on this CPU, and
    bfloat16 on CUDA; torch's own count of threads, or one for each core that the kernel names; half of the memory that
    is free after loading for keys and values, of which one process may have all; and four times as much on disk,
    `kv_disk`, for prefixes that are likely to be wanted again (0: none).

    `deterministic`: a sequence's tokens depend on no neighbour. None: where that is cheap, which is on a CPU.
    """

    device: Annotated[str, Meta(pattern=r"^(cpu|cuda(:\d+)?)$")] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    threads: Annotated[int, Meta(ge=1)] | None = None
    kv_memory: Annotated[int, Meta(ge=1)] | None = None
    kv_quota: Annotated[int, Meta(ge=1)] | None = None
    kv_disk: Annotated[int, Meta(ge=0)] | None = None
    deterministic: bool | None = None


def parse(options: dict[str, Any]) -> Options:
    """The options in `options`. Raises `ConfigError`, which lists what is allowed."""
    try:
        return msgspec.convert(options, Options)
    except msgspec.ValidationError as error:
        raise ConfigError(f"model options {options}: {error}. Allowed: {ALLOWED}", options=sorted(options)) from error
