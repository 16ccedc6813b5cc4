"""The interface of a model's runtime to those who share out the memory.

The residency, the memory balancer and the rule of turns see each model through it; `runtime.py` implements it. It never
holds anything itself.
"""

from __future__ import annotations

from typing import Protocol

from ipc.errors import LlmosError
from kernel.models.footprint import Footprint
from kernel.models.slot_rules import SlotRules
from kernel.models.spec import ModelSpec
from kernel.models.state import ModelState


class Resident(Protocol):
    """The runtime of a model, in memory or not, as the residency and the memory balancer see it."""

    name: str
    spec: ModelSpec
    state: ModelState
    footprint: Footprint
    rules: SlotRules

    @property
    def pid(self) -> int | None:
        """The process id of the driver, None while there is none."""

    @property
    def cores(self) -> list[int]:
        """The processors of the driver; empty for all."""

    @property
    def takes_memory(self) -> bool:
        """Whether its driver is, or soon will be, in memory."""

    @property
    def priority(self) -> int | None:
        """The highest priority of the calls that run or wait for a slot; None if there is no such call."""

    def start_load(self) -> None:
        """There is room: start a driver."""

    def wait_for_memory(self, reason: str) -> None:
        """There is no room yet; show `reason` to the callers that wait."""

    def unload(self, why: str) -> None:
        """Swap out its sequences and stop the driver. The sequences go on when the model is loaded again."""

    def fail(self, error: LlmosError) -> None:
        """It cannot be loaded: end every call that waits for it with `error`."""

    def resize(self, kv_memory: int, cause: str) -> None:
        """Set the KV memory of the driver to `kv_memory` bytes."""
