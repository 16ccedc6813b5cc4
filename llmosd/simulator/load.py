"""How much work a device can do, and when tasks have to come to ask for a given share of that.

Asked by the generators and for traces. It simulates, under fifo, with all calls there from the start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from ipc.errors import InvalidWorkload
from kernel.policy.fifo import Fifo
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.simulation import MANY, Simulation
from llmosd.simulator.workload import WorkloadCall, WorkloadTask


def saturated_seconds(calls: list[tuple[WorkloadCall, ...]], device: DeviceModel, slots: int) -> float:
    """Seconds that all calls of all tasks take where all are there at once and none waits for another.

    A load of 1 is one at which tasks come as fast as that. It is measured and not computed, since how many calls
    share a step depends on how much of it goes to prompts.
    """
    alone = [WorkloadTask(arrival=0.0, calls=(_alone(call),)) for task in calls for call in task]
    return Simulation(alone, device, Fifo(), slots, look=MANY).run().seconds


def arrivals(
    calls: list[tuple[WorkloadCall, ...]], gaps: Iterator[float], load: float, device: DeviceModel, slots: int
) -> list[float]:
    """When each task has to come for a load of `load`; `gaps` between them have a mean of 1."""
    check_load(load)
    gap = saturated_seconds(calls, device, slots) / len(calls) / load
    times, now = [], 0.0
    for _ in calls:
        now += gap * next(gaps)
        times.append(now)
    return times


def stretched(
    tasks: list[WorkloadTask], load: float, device: DeviceModel, slots: int
) -> tuple[list[WorkloadTask], float]:
    """The same tasks at a load of `load`, and by what time was stretched for it."""
    check_load(load)
    span = tasks[-1].arrival
    if span <= 0:
        return tasks, 1.0
    factor = saturated_seconds([task.calls for task in tasks], device, slots) / load / span
    return [msgspec.structs.replace(task, arrival=task.arrival * factor) for task in tasks], factor


def check_load(load: float) -> None:
    """Raises `InvalidWorkload`."""
    if not 0 < load < math.inf:
        raise InvalidWorkload(f"a load of {load:g}; it is above 0, such as 0.9")


def _alone(call: WorkloadCall) -> WorkloadCall:
    return WorkloadCall(prompt=call.prompt, tokens=call.tokens, limit=call.limit)
