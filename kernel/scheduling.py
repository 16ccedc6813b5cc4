"""How threads and sequences are scheduled: settings of the watchdog and of the policies of model slots. Data only."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from kernel.policy.catalogue import PolicySettings, check
from kernel.slots.model import ModelSpec


class Scheduling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
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
