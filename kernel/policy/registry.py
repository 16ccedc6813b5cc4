"""The policies by name: what may be set about one, what is wrong with it, and how to make it.

Asked where settings are read, by the kernel for each model, by the system call that changes a policy, and by a
simulation.
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

    `kind` is one of `KINDS`. `quantum`: tokens for which a call keeps a slot while others wait. `aging`: priorities
    gained per second of waiting. `weights`: the shares of owners; of those not named, 1. `prompt_weight`: what a token
    of a prompt costs an owner, in tokens made. `starvation`: a call goes first if it waited so many times as long as
    it, or its program, was served; 0: none does.
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


def make(settings: PolicySettings) -> Policy:
    """The policy that `settings` describe. Raises `InvalidPolicy`."""
    check(settings)
    return MAKERS[settings.kind](settings)


def _made(settings: PolicySettings, kind: str, quantum: int) -> Policy:
    return MAKERS[kind](msgspec.structs.replace(settings, kind=kind, quantum=quantum))


def check(settings: PolicySettings) -> None:
    """Raises `InvalidPolicy`, which says what is wrong and what is allowed."""
    if settings.kind not in MAKERS:
        raise InvalidPolicy(f"no policy {settings.kind!r}; there are: {', '.join(KINDS)}", kind=settings.kind)
    if type(settings.quantum) is not int or settings.quantum < 1:
        raise InvalidPolicy(f"a quantum under one: {settings.quantum}; it is a number of tokens, 32 by default")
    for name in ("aging", "prompt_weight", "starvation"):
        value = getattr(settings, name)
        if not 0 <= value < math.inf:
            raise InvalidPolicy(f"{name} is {value:g}; it is 0 or more")
    for owner, weight in settings.weights.items():
        if weight == 0:
            raise InvalidPolicy(f"a weight of zero, of owner {owner!r}: it would never run; give it a small one")
        if not 0 < weight <= MAX_WEIGHT:
            raise InvalidPolicy(f"the weight of owner {owner!r} is {weight:g}; it is above 0, up to {MAX_WEIGHT:g}")
