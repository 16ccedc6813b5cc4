"""Settings of how models are scheduled, and of the resources that all models share. Data only.

Written in the settings file, read by the kernel and the resource manager.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from kernel.models.spec import ModelSpec
from kernel.policy.registry import PolicySettings, check_policy

SHARE = 0.7  # of the machine's memory, for all drivers together, unless the settings say otherwise


class SchedulingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings under `[scheduling]`.

    If a thread holds the event loop for `slow_step` seconds, this is logged; after `burst` seconds the thread is
    interrupted (0: never).
    `policy`, `quantum`, `aging`, `weights` and `starvation` apply to the slots of each model that does not set its own:
    see `PolicySettings`.
    """

    slow_step: Annotated[float, Meta(gt=0)] = 0.1
    burst: Annotated[float, Meta(ge=0)] = 1.0
    policy: str = "priority"
    aging: Annotated[float, Meta(ge=0)] = 0.1
    quantum: Annotated[int, Meta(ge=1)] = 32
    weights: dict[str, float] = {}
    starvation: Annotated[float, Meta(ge=0)] = 20.0

    def policy_of(self, spec: ModelSpec) -> PolicySettings:
        """The settings of the policy for the slots of one model. Raises `InvalidPolicy`."""
        settings = PolicySettings(
            kind=self.policy if spec.policy is None else spec.policy,
            quantum=self.quantum if spec.quantum is None else spec.quantum,
            aging=self.aging,
            weights=self.weights | spec.weights,
            starvation=self.starvation,
        )
        check_policy(settings)
        return settings


class ResourceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings under `[resources]`: memory, which all models share.

    `memory`: bytes for all drivers together (0: seven tenths of the machine's memory). `collate`: seconds for which the
    calls for an unloaded model wait before a busy model is unloaded for them; a model that was just loaded may stay
    longer. Meanwhile the waiting calls gather and are served together, so a longer `collate` means fewer loads. If two
    busy models alternate and `collate` is four times the load time, loads take about a quarter of the time.
    `leak_margin`: bytes by which a driver may exceed its measured size plus its KV memory before it is killed for a
    leak.
    """

    memory: Annotated[int, Meta(ge=0)] = 0
    collate: Annotated[float, Meta(gt=0)] = 10.0
    leak_margin: Annotated[int, Meta(ge=0)] = 1 << 30

    def budget(self, memory_total: int) -> int:
        """Bytes for all drivers together, on a machine with `memory_total` bytes."""
        return self.memory or int(SHARE * memory_total)
