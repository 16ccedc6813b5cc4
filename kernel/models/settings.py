"""Settings of how models are scheduled, and of the resources that all models share. Data only.

Written in the settings file, read by the kernel and the resource manager.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from kernel.models.spec import ModelSpec
from kernel.policy.registry import PolicySettings, check

SHARE = 0.7  # of the machine's memory, for drivers, where nothing is set


class SchedulingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many seconds a step may hold the loop until it is logged, and until it is broken (0: never).

    `policy`, `quantum`, `aging`, `weights` and `starvation` hold for the slots of each model that does not say
    otherwise: see `PolicySettings`.
    """

    slow_step: Annotated[float, Meta(gt=0)] = 0.1
    burst: Annotated[float, Meta(ge=0)] = 1.0
    policy: str = "priority"
    aging: Annotated[float, Meta(ge=0)] = 0.1
    quantum: Annotated[int, Meta(ge=1)] = 32
    weights: dict[str, float] = {}
    starvation: Annotated[float, Meta(ge=0)] = 20.0

    def policy_of(self, spec: ModelSpec) -> PolicySettings:
        """The policy of the slots of a model. Raises `InvalidPolicy`."""
        settings = PolicySettings(
            kind=self.policy if spec.policy is None else spec.policy,
            quantum=self.quantum if spec.quantum is None else spec.quantum,
            aging=self.aging,
            weights=self.weights | spec.weights,
            starvation=self.starvation,
        )
        check(settings)
        return settings


class ResourceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all models share.

    `memory`: bytes for all drivers together (0: seven tenths of the machine's). `collate`: seconds for which calls of
    one model wait at most until another one that fills the memory has to go. `leak_margin`: bytes that a driver may
    grow beyond its measured size and its keys and values before it is taken to leak.
    """

    memory: Annotated[int, Meta(ge=0)] = 0
    collate: Annotated[float, Meta(gt=0)] = 10.0
    leak_margin: Annotated[int, Meta(ge=0)] = 1 << 30

    def budget(self, memory_total: int) -> int:
        """Bytes for all drivers together, on a machine with so many."""
        return self.memory or int(SHARE * memory_total)
