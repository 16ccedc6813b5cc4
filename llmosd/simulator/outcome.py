"""The outcome of a simulation: each call, each task, and the data of the plots.

Made by a simulation; read by the report, the plots and the benches. It holds data and computes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from llmosd.simulator.call import SimulatedCall
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.timeline import Interval, TimelineSample
from llmosd.simulator.workload import WorkloadTask

# How a call ended: with all its tokens; the policy shed a call of its task; its task ended at the deadline.
DONE, SHED, ENDED = "done", "shed", "ended"


class CallOutcome(msgspec.Struct, frozen=True, array_like=True):
    """One call; `call` is its number in order of arrival. Times are in seconds from the start; None: never happened."""

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
    """One task; `finished` is None if it ended early. `service` is in tokens; prompt tokens have their own weight."""

    task: WorkloadTask
    finished: float | None
    service: float


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation.

    It took `seconds` from start to end, of which `busy` were spent in steps. `gap`: the largest gap of service between
    two owners while both had calls waiting or running, in tokens over weight; None if there is one owner, or too many.
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
    """The outcome of `call`, which has ended."""
    assert call.end is not None
    return CallOutcome(
        call.id,
        call.task,
        call.place,
        call.group.owner,
        call.priority,
        call.prompt,
        call.charged,
        call.submitted,
        call.started,
        call.first,
        call.end,
        call.preemptions,
        call.outcome,
    )
