"""The textbook: cases small enough to work out by hand; their analytic, simulated and measured values side by side.

Used by `llmos simulate --example textbook`; it needs no daemon. Sources: Silberschatz, Galvin, Gagne, "Operating System
Concepts", 5.3; Kurose, Ross, "Computer Networking", 1.4 (delay of a message); Cormen et al., "Introduction to
Algorithms", 6 and 8.1 (sorting by comparisons).
"""

from __future__ import annotations

import functools
import math
import random

import msgspec

from kernel.policy.group import SchedulingGroup
from kernel.policy.policy import Policy
from kernel.policy.queue_entry import LazyHeap, QueueEntry
from kernel.policy.registry import PolicySettings, make_policy
from llmosd.simulator import live
from llmosd.simulator.call import SimulatedCall
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.outcome import Run
from llmosd.simulator.simulation import Simulation
from llmosd.simulator.workload import WorkloadCall, WorkloadTask

SLICE = 0.1  # seconds
TOKENS = 10  # per slice: one every 10 ms
DEVICE = DeviceModel(step=SLICE / TOKENS, name="textbook: a token every 10 ms")
PROCESSES = 5
AGENTS, SLOTS = 12, 4
ORDERED = 1024  # jobs to sort
MESSAGE, DISTANCE, BANDWIDTH = 1_000_000, 1_000_000.0, 1e9  # bytes, metres, bits per second
LIGHT = 2e8  # metres a second in fibre or copper
PACKET = 1500  # bytes


class Formula(msgspec.Struct, frozen=True):
    """A formula with its analytic, simulated and measured values, in `unit`. None: there is no such value."""

    name: str
    formula: str
    unit: str
    analytic: float
    simulated: float | None = None
    measured: float | None = None


class Textbook(msgspec.Struct, frozen=True):
    """All `formulas`, and the `run` of five processes of priority 1 to 5: the `order` of their ends, their `slices`."""

    run: Run
    order: list[str]
    slices: dict[str, int]
    formulas: list[Formula]

    @property
    def milliseconds(self) -> int:
        """Milliseconds from start to end."""
        return round(1000 * self.run.seconds)


def textbook(*, measure: bool = True) -> Textbook:
    """Compute all cases. With `measure`, also run some of them in real time in this process; that takes 3 seconds."""
    run = Simulation(processes(), DEVICE, _priority(), slots=1, lease=TOKENS, timeline=True).run()
    ends = sorted(run.calls, key=lambda call: call.end)
    slices = {f"P{call.priority}": call.tokens // TOKENS for call in ends}
    return Textbook(run, list(slices), slices, formulas(run, measure=measure))


def processes() -> list[WorkloadTask]:
    """Five processes, all there from the start. The process of priority p needs p slices."""
    return [
        WorkloadTask(
            arrival=0.0, calls=(WorkloadCall(prompt=0, tokens=TOKENS * level),), name=f"P{level}", priority=level
        )
        for level in range(1, PROCESSES + 1)
    ]


def formulas(run: Run, *, measure: bool) -> list[Formula]:
    """All formulas with their values; times are in milliseconds. `run` is the simulated run of `processes`."""
    return [_sum_over_priorities(run, measure), _round(measure), _agents(measure), _message(), _order()]


def _sum_over_priorities(run: Run, measure: bool) -> Formula:
    measured = 1000 * live.seconds(processes(), DEVICE, _priority(), 1, TOKENS) if measure else None
    analytic = 1000 * SLICE * sum(range(1, PROCESSES + 1))
    return Formula(
        "five processes, priority p needs p slices", "sum of p x slice", "ms", analytic, 1000 * run.seconds, measured
    )


def _round(measure: bool) -> Formula:
    tasks = [WorkloadTask(arrival=0.0, calls=(WorkloadCall(prompt=0, tokens=TOKENS),)) for _ in range(PROCESSES)]
    simulated = Simulation(tasks, DEVICE, _round_robin(), 1, lease=TOKENS).run().seconds
    measured = 1000 * live.seconds(tasks, DEVICE, _round_robin(), 1, TOKENS) if measure else None
    return Formula(
        "one round of round robin, n = 5", "n x slice", "ms", 1000 * PROCESSES * SLICE, 1000 * simulated, measured
    )


def _agents(measure: bool) -> Formula:
    tasks = [WorkloadTask(arrival=0.0, calls=(WorkloadCall(prompt=0, tokens=TOKENS),)) for _ in range(AGENTS)]
    simulated = Simulation(tasks, DEVICE, _fifo(), SLOTS).run().seconds
    measured = 1000 * live.seconds(tasks, DEVICE, _fifo(), SLOTS, TOKENS) if measure else None
    name = f"A = {AGENTS} agents of T = 100 ms on n = {SLOTS} slots"
    return Formula(name, "A x T / n", "ms", 1000 * AGENTS * SLICE / SLOTS, 1000 * simulated, measured)


def _message() -> Formula:
    analytic = link_seconds(MESSAGE, DISTANCE, BANDWIDTH)
    simulated = link_seconds_by_packet(MESSAGE, DISTANCE, BANDWIDTH)
    name = "a message of 1 MB over 1000 km at 1 Gbit/s"
    return Formula(name, "distance / speed + length / bandwidth", "ms", 1000 * analytic, 1000 * simulated)


def link_seconds(length: int, distance: float, bandwidth: float) -> float:
    """Seconds until the last bit of `length` bytes arrives, over `distance` metres at `bandwidth` bits per second."""
    return distance / LIGHT + 8 * length / bandwidth


def link_seconds_by_packet(length: int, distance: float, bandwidth: float) -> float:
    """The same seconds, simulated by packet: the link takes a packet when the previous packet has left."""
    free = arrived = 0.0
    left = length
    while left > 0:
        size = min(left, PACKET)
        left -= size
        free += 8 * size / bandwidth
        arrived = free + distance / LIGHT
    return arrived


def _order() -> Formula:
    draw = random.Random(1)
    keys = [draw.random() for _ in range(ORDERED)]
    analytic = ORDERED * math.log2(ORDERED)
    return Formula(
        f"comparisons to sort n = {ORDERED} jobs",
        "n log2 n",
        "",
        analytic,
        float(_comparisons_of_sorting(keys)),
        float(_comparisons_of_a_queue(keys)),
    )


@functools.total_ordering
class _Counted:
    """A sort key that counts all comparisons."""

    compared = 0

    def __init__(self, value: float) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Counted) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __lt__(self, other: _Counted) -> bool:
        _Counted.compared += 1
        return self.value < other.value


def _comparisons_of_sorting(keys: list[float]) -> int:
    _Counted.compared = 0
    sorted(map(_Counted, keys))
    return _Counted.compared


def _comparisons_of_a_queue(keys: list[float]) -> int:
    """Comparisons if the queue of the policies sorts: all jobs join, then the first leaves until none is left."""
    _Counted.compared = 0
    queue = LazyHeap()
    for number, key in enumerate(keys):
        call = SimulatedCall(number, 0, 0, WorkloadCall(prompt=0, tokens=1), SchedulingGroup(0), 0, 0.0, 0.0)
        queue.push(QueueEntry(call, 0.0), (_Counted(key),))  # type: ignore[arg-type]
    while (first := queue.first()) is not None:
        queue.remove(first)
    return _Counted.compared


def _priority() -> Policy:
    return make_policy(PolicySettings(kind="priority", aging=0.0, quantum=TOKENS))


def _round_robin() -> Policy:
    return make_policy(PolicySettings(kind="round_robin", quantum=TOKENS))


def _fifo() -> Policy:
    return make_policy(PolicySettings(kind="fifo"))
