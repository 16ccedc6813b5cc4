"""Load: the rate at which a device can serve the calls of a workload, and arrival times for a share of that rate.

Used by the generators, and by experiments for traces and recordings. To find the rate, it simulates all calls under
fifo, submitted at the start; it computes no capacity from formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from ipc.errors import InvalidWorkload
from kernel.policy.fifo import Fifo
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.simulation import UNBOUNDED, Simulation
from llmosd.simulator.workload import WorkloadCall, WorkloadTask


def saturated_seconds(calls: list[tuple[WorkloadCall, ...]], device: DeviceModel, slots: int) -> float:
    """Seconds that all calls of all tasks take if all arrive at time 0 and no call waits for another.

    At a load of 1, all tasks arrive within that time. The time is simulated and not computed, because the number of
    calls that share a step depends on the part of the step that goes to prompts.
    """
    independent = [WorkloadTask(arrival=0.0, calls=(_without_dependencies(call),)) for task in calls for call in task]
    return Simulation(independent, device, Fifo(), slots, reschedule_steps=UNBOUNDED).run().seconds


def arrivals(
    calls: list[tuple[WorkloadCall, ...]], gaps: Iterator[float], load: float, device: DeviceModel, slots: int
) -> list[float]:
    """Arrival times of the tasks for a load of `load`. `gaps` are the times between them, before scaling; mean 1."""
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
    """The same tasks with arrival times scaled to a load of `load`, and the factor of the scaling."""
    check_load(load)
    span = tasks[-1].arrival
    if span <= 0:
        return tasks, 1.0
    factor = saturated_seconds([task.calls for task in tasks], device, slots) / load / span
    return [msgspec.structs.replace(task, arrival=task.arrival * factor) for task in tasks], factor


def check_load(load: float) -> None:
    """Raises `InvalidWorkload` unless `load` is a finite number above 0."""
    if not 0 < load < math.inf:
        raise InvalidWorkload(f"a load of {load:g}; give a number above 0, such as 0.9")


def _without_dependencies(call: WorkloadCall) -> WorkloadCall:
    return WorkloadCall(prompt=call.prompt, tokens=call.tokens, limit=call.limit)
