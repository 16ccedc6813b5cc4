"""The rules by which the slots of one model are given: the policy in force, and how many slots there are to give.

Changed by the system call `SetPolicy` and by the memory balance, shown by the listings. Each change is logged with its
cause. It grants no slot.
"""

from __future__ import annotations

import structlog

from kernel.models.leases import LeaseTable
from kernel.policy.registry import PolicySettings, make

log = structlog.get_logger("kernel.models")


class SlotRules:
    """`policy` describes the policy that `slots` ask. `cause`: why fewer slots are given out than the model has."""

    def __init__(self, model: str, policy: PolicySettings, leases: LeaseTable) -> None:
        self.policy = policy
        self.cause = ""
        self._model = model
        self._leases = leases

    @property
    def given(self) -> int:
        """How many slots are given out."""
        return self._leases.count

    def set_slot_limit(self, count: int, cause: str) -> None:
        """From now on so many of the slots are given out."""
        log.info("slots given out", model=self._model, before=self._leases.count, now=count, cause=cause)
        self._leases.count, self.cause = count, cause
        self._leases.reschedule()

    def set_policy(self, policy: PolicySettings, cause: str) -> None:
        """Let another policy decide which sequence gets a slot, from now on.

        Raises `InvalidPolicy`, and changes nothing then.
        """
        made, before, self.policy = make(policy), self.policy, policy
        log.info("policy", model=self._model, before=before, now=policy, cause=cause)
        self._leases.switch(made)

    def policy_changed(self, reason: str) -> None:
        """The policy `auto` has taken up another one."""
        log.info("policy", model=self._model, now=reason, cause="the load")
