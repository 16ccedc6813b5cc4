"""The options of the simulated driver: its costs, its memory, and the faults to simulate.

The device reads them once, from `Load`. They never change while the device runs.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ipc.errors import ConfigError

Cost = Annotated[float, Meta(ge=0)]
Bytes = Annotated[int, Meta(ge=0)]
Steps = Annotated[int, Meta(ge=0)]


class CostModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The costs of a device in seconds, and its sizes.

    A step costs `step_seconds + sequence_seconds * sequences + prompt_seconds * (prompt tokens computed)`; each word of
    a prompt is a token. The KV of a token takes `token_bytes` out of `kv_memory` bytes (0: as many as the kernel
    grants); a sequence reserves memory for its prompt and all tokens that it may generate. A load takes `load_seconds`
    and really allocates `weights` bytes. A swap to disk takes `swap_seconds`. `context` is the longest sequence, and
    `reply_tokens` the longest reply to a call without `max_tokens`, both in tokens.

    Faults, for tests of the kernel: the device exits after `exit_after` steps, hangs after `hang_after` steps, and
    really leaks `leak` bytes in each step. If `nan` is set, its logprobs, scores and vectors are NaN. If `hang_load` is
    set, it never finishes loading.
    """

    step_seconds: Cost = 0.002
    sequence_seconds: Cost = 0.0001
    prompt_seconds: Cost = 0.00001
    load_seconds: Cost = 0.0
    swap_seconds: Cost = 0.0
    reply_tokens: Annotated[int, Meta(ge=1)] = 32
    context: Annotated[int, Meta(ge=1)] = 8192
    token_bytes: Bytes = 0
    kv_memory: Bytes = 0
    weights: Bytes = 0
    exit_after: Steps | None = None
    hang_after: Steps | None = None
    leak: Bytes = 0
    nan: bool = False
    hang_load: bool = False


def parse(options: dict[str, object]) -> CostModel:
    """Check and convert `options`. Raises `ConfigError`, which lists the allowed options."""
    try:
        return msgspec.convert(options, CostModel)
    except msgspec.ValidationError as error:
        allowed = ", ".join(CostModel.__struct_fields__)
        raise ConfigError(f"simulated driver: {error}; allowed options: {allowed}") from None
