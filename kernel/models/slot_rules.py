"""The rules for the slots of one model: which policy assigns them, and how many of them it may assign.

The system call `SetPolicy` and the memory balancer change the rules, the listings show them. Each change is logged with
its cause. It assigns no slot itself.
"""

from __future__ import annotations

import structlog

from kernel.models.leases import LeaseTable
from kernel.policy.registry import PolicySettings, make_policy

log = structlog.get_logger("kernel.models")


class SlotRules:
    """`policy` holds the settings of the policy in force. `limit_cause`: why not all slots may be in use."""

    def __init__(self, model: str, policy: PolicySettings, leases: LeaseTable) -> None:
        self.policy = policy
        self.limit_cause = ""
        self._model = model
        self._leases = leases

    @property
    def slot_limit(self) -> int:
        """How many sequences may hold a slot."""
        return self._leases.count

    def set_slot_limit(self, count: int, cause: str) -> None:
        """Let at most `count` sequences hold a slot. No sequence loses its slot by this."""
        log.info("slot limit changed", model=self._model, before=self._leases.count, now=count, cause=cause)
        self._leases.count, self.limit_cause = count, cause
        self._leases.reschedule()

    def set_policy(self, policy: PolicySettings, cause: str) -> None:
        """Replace the policy. Raises `InvalidPolicy`, and then changes nothing."""
        made, before, self.policy = make_policy(policy), self.policy, policy
        log.info("policy changed", model=self._model, before=before, now=policy, cause=cause)
        self._leases.switch(made)

    def policy_changed(self, reason: str) -> None:
        """The policy `auto`, which leaves the decisions to one of the others, has chosen another one for `reason`."""
        log.info("policy changed", model=self._model, now=reason, cause="the workload")
