"""A scheduling group: what all calls of one task, and of all that it spawned, share for scheduling.

Created where a task begins, and inherited by each process that it spawns. The lease table charges the service of its
calls to it, so a new policy takes over without losing that record. It calls nothing.
"""

from __future__ import annotations

PROMPT_WEIGHT = 0.5  # service of one prompt token, in tokens made: see Sheng et al., OSDI 2024, section 3.1


class SchedulingGroup:
    """`weight` is the share of its owner, above zero. `deadline` is in seconds of the clock that policies are given.

    `service` is what its calls have received so far, in tokens made; a prompt token counts `PROMPT_WEIGHT`.
    """

    __slots__ = ("deadline", "id", "owner", "service", "weight")

    def __init__(self, group_id: int, owner: str = "", weight: float = 1.0, deadline: float | None = None) -> None:
        self.id = group_id
        self.owner = owner
        self.weight = weight
        self.deadline = deadline
        self.service = 0.0
