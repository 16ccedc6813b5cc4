"""A scheduling group: the owner, deadline and service that all calls of one task and its descendants share.

Created where a task begins; each process that the task spawns shares it. The lease table adds the service of each call
to the group and not to a policy, so the record survives a change of the policy. It calls nothing.
"""

from __future__ import annotations

PROMPT_WEIGHT = 0.5  # service of one prompt token, in tokens made: see Sheng et al., OSDI 2024, section 3.1


class SchedulingGroup:
    """`weight` is the share of the owner, above zero. `deadline` is a time of the clock that the policy's caller uses.

    `service` is the service of all calls of the group so far, in tokens made; a prompt token counts `PROMPT_WEIGHT`.
    """

    __slots__ = ("deadline", "id", "owner", "service", "weight")

    def __init__(self, group_id: int, owner: str = "", weight: float = 1.0, deadline: float | None = None) -> None:
        self.id = group_id
        self.owner = owner
        self.weight = weight
        self.deadline = deadline
        self.service = 0.0
