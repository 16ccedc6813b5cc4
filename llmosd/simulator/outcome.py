"""What came of a simulation: each call, each task, and what the plots draw.

Made by a simulation, or from a recording of the daemon; read by the report and the plots. Data only.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from llmosd.simulator.call import SimulatedCall
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.timeline import Interval, TimelineSample
from llmosd.simulator.workload import WorkloadTask

DONE, SHED, ENDED = "done", "shed", "ended"  # all its tokens; given up by the policy; its task ended at its deadline


class CallOutcome(msgspec.Struct, frozen=True, array_like=True):
    """Times are in seconds from the start, None for what it never came to. `call` counts up in the order of coming."""

    call: int
    task: int
    place: int
    owner: str
    priority: int
    prompt: int
    tokens: int
    submitted: float
    started: float | None
    first: float | None
    end: float
    preemptions: int
    outcome: str


class TaskOutcome(NamedTuple):
    """`finished` is None if the task was ended before. `service` in tokens, those of prompts at their price."""

    task: WorkloadTask
    finished: float | None
    service: float


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation.

    `seconds` from start to end, `busy` of these in steps. `gap`: the largest gap of service between two owners while
    both had calls waiting or running, in tokens over weight; None with one owner.
    """

    policy: str
    slots: int
    device: DeviceModel
    calls: list[CallOutcome]
    tasks: list[TaskOutcome]
    seconds: float
    busy: float = 0.0
    steps: int = 0
    swaps: int = 0
    gap: float | None = None
    intervals: list[Interval] = []
    samples: list[TimelineSample] = []


def outcome_of(call: SimulatedCall) -> CallOutcome:
    """What became of `call`, which is over."""
    assert call.end is not None
    return CallOutcome(
        call.id,
        call.task,
        call.place,
        call.group.owner,
        call.priority,
        call.prompt,
        call.credited,
        call.submitted,
        call.started,
        call.first,
        call.end,
        call.preemptions,
        call.outcome,
    )
