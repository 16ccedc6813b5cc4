"""How threads and sequences are scheduled: the settings of the watchdog and of the policy of model slots. Data only."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Scheduling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many seconds a step may hold the loop until it is logged, and until it is broken (0: never).

    `aging`: priorities that a sequence gains for each second it waits for a slot (0: none); `quantum`: tokens it may
    make on a slot that it got by aging.
    """

    slow_step: Annotated[float, Meta(gt=0)] = 0.1
    burst: Annotated[float, Meta(ge=0)] = 1.0
    aging: Annotated[float, Meta(ge=0)] = 0.1
    quantum: Annotated[int, Meta(ge=1)] = 32
