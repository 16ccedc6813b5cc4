"""The options of the simulated driver: what things cost, how much memory there is, and what is to go wrong.

Read once by the device, from `Load`.
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
    """Seconds that a device takes, and the context it offers in tokens.

    A step costs `step_seconds + sequence_seconds * sequences + prompt_seconds * tokens of prompts that it reads`; a
    prompt's tokens are its words. Keys and values take `token_bytes` a token, out of `kv_memory` (0: as much as the
    kernel grants); a sequence reserves them for all that it may make. To write them out takes `swap_seconds`.
    `weights` are bytes that are really allocated.

    For tests of those who live with it: `exit_after` and `hang_after` count steps; `leak` bytes are really lost with
    each step; with `nan` the numbers that it answers are none; with `hang_load` it never gets ready.
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
    """The options in `options`. Raises `ConfigError`, which lists what is allowed."""
    try:
        return msgspec.convert(options, CostModel)
    except msgspec.ValidationError as error:
        allowed = ", ".join(CostModel.__struct_fields__)
        raise ConfigError(f"simulated driver: {error}; options: {allowed}") from None
