"""A program: what the calls of one task, and of all it spawned, have in common for scheduling.

Made where a task begins, and handed down to what it spawns. The slots charge it with what its calls are served, so that
a policy may be replaced without anything being forgotten. It speaks to nobody.
"""

from __future__ import annotations

PROMPT_WEIGHT = 0.5  # service of a token of prompt, in tokens made: see Sheng et al., OSDI 2024, section 3.1


class SchedulingGroup:
    """`weight` is the share of its owner, above zero. `deadline` is in seconds of the clock that a policy is handed.

    `service` is what its calls have got so far, in tokens made; one of a prompt counts `PROMPT_WEIGHT`.
    """

    __slots__ = ("deadline", "id", "owner", "service", "weight")

    def __init__(self, program_id: int, owner: str = "", weight: float = 1.0, deadline: float | None = None) -> None:
        self.id = program_id
        self.owner = owner
        self.weight = weight
        self.deadline = deadline
        self.service = 0.0
