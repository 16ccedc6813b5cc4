"""The policies by name: their settings, how these are checked, and how a policy is created from them.

Called where settings are read, by each model runtime, by the system call that changes a policy, and by a simulation. It
schedules nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import msgspec

from ipc.errors import InvalidPolicy
from kernel.policy.attained import AttainedService
from kernel.policy.attained_dag import AttainedPath
from kernel.policy.auto import Auto
from kernel.policy.edf import EarliestDeadline
from kernel.policy.fair import WeightedFair
from kernel.policy.fifo import Fifo
from kernel.policy.group import PROMPT_WEIGHT
from kernel.policy.hrrn import HighestResponseRatio
from kernel.policy.mlfq import SkipJoinFeedback
from kernel.policy.policy import Policy
from kernel.policy.priority import PriorityWithAging
from kernel.policy.round_robin import RoundRobin

MAX_WEIGHT = 1e6


class PolicySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of a policy.

    `kind` is one of `KINDS`. `quantum`: tokens that a call makes on its slot before it may lose the slot to a waiting
    call. `aging`: priorities gained per second of waiting. `weights`: the shares of owners; an owner that is not named
    has 1. `prompt_weight`: the price of a prompt token for its owner, in tokens made. `starvation`: a call goes first
    when it has waited this many times as long as its attained service took; 0: never.
    """

    kind: str = "priority"
    quantum: int = 32
    aging: float = 0.1
    weights: dict[str, float] = {}
    prompt_weight: float = PROMPT_WEIGHT
    starvation: float = 20.0


MAKERS: dict[str, Callable[[PolicySettings], Policy]] = {
    "fifo": lambda settings: Fifo(),
    "round_robin": lambda settings: RoundRobin(settings.quantum),
    "priority": lambda settings: PriorityWithAging(settings.aging, settings.quantum),
    "mlfq": lambda settings: SkipJoinFeedback(settings.quantum, settings.starvation),
    "fair": lambda settings: WeightedFair(settings.quantum, settings.weights, settings.prompt_weight),
    "attained": lambda settings: AttainedService(settings.quantum, settings.starvation),
    "attained_dag": lambda settings: AttainedPath(settings.quantum, settings.starvation),
    "edf": lambda settings: EarliestDeadline(),
    "hrrn": lambda settings: HighestResponseRatio(),
    "auto": lambda settings: Auto(partial(_made, settings), settings.quantum),
}
KINDS = tuple(MAKERS)


def make_policy(settings: PolicySettings) -> Policy:
    """Create the policy that `settings` describe. Raises `InvalidPolicy`."""
    check_policy(settings)
    return MAKERS[settings.kind](settings)


def _made(settings: PolicySettings, kind: str, quantum: int) -> Policy:
    return MAKERS[kind](msgspec.structs.replace(settings, kind=kind, quantum=quantum))


def check_policy(settings: PolicySettings) -> None:
    """Check `settings`. Raises `InvalidPolicy`, which says what is wrong and what is allowed."""
    if settings.kind not in MAKERS:
        raise InvalidPolicy(f"no policy {settings.kind!r}; the policies are: {', '.join(KINDS)}", kind=settings.kind)
    if type(settings.quantum) is not int or settings.quantum < 1:
        raise InvalidPolicy(f"the quantum is {settings.quantum!r}; give a whole number of tokens, at least 1")
    for name in ("aging", "prompt_weight", "starvation"):
        value = getattr(settings, name)
        if not 0 <= value < math.inf:
            raise InvalidPolicy(f"{name} is {value:g}; it must be 0 or more")
    for owner, weight in settings.weights.items():
        if weight == 0:
            raise InvalidPolicy(f"the weight of owner {owner!r} is 0, so its calls never run; give it a small weight")
        if not 0 < weight <= MAX_WEIGHT:
            raise InvalidPolicy(
                f"the weight of owner {owner!r} is {weight:g}; it must be above 0 and at most {MAX_WEIGHT:g}"
            )
