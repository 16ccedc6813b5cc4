"""Made-up workloads, each a function of its seed: arrivals by Poisson or in bursts, agents in a closed loop, programs.

Asked by the commands and the benches. Times are seconds, lengths tokens. `load` is the share of what the device can do
(see `llmosd.simulator.load`); above 1 the queue grows for as long as tasks come.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import msgspec

from ipc.errors import InvalidWorkload
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.load import arrivals
from llmosd.simulator.workload import WorkloadCall, WorkloadTask, chain

MOST = 4096  # tokens of a prompt or a reply that is drawn


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How long calls are: medians of log-normal lengths and their spread (the standard deviation of the logarithm)."""

    prompt: int = 120
    tokens: int = 60
    spread: float = 0.8

    def call(self, draw: random.Random, wait: float = 0.0) -> WorkloadCall:
        """One call of random length."""
        prompt, tokens = (self._length(draw, median) for median in (self.prompt, self.tokens))
        return WorkloadCall(prompt=prompt, tokens=tokens, wait=wait)

    def _length(self, draw: random.Random, median: int) -> int:
        return min(max(round(median * math.exp(draw.gauss(0.0, self.spread))), 1), MOST)


def poisson(
    seed: int, count: int, load: float, device: DeviceModel, slots: int, shape: Shape, owners: int = 1
) -> list[WorkloadTask]:
    """`count` tasks of one call that come independently of each other."""
    draw = random.Random(seed)
    calls: list[tuple[WorkloadCall, ...]] = [(shape.call(draw),) for _ in range(count)]
    return _arriving(calls, _exponential(draw), load, device, slots, draw, owners)


def bursty(
    seed: int, count: int, load: float, device: DeviceModel, slots: int, shape: Shape, owners: int = 1, burst: int = 10
) -> list[WorkloadTask]:
    """As many as `poisson`, in bursts of `burst` on average that come at once: a batch Poisson process."""
    draw = random.Random(seed)
    calls: list[tuple[WorkloadCall, ...]] = [(shape.call(draw),) for _ in range(count)]

    def gaps() -> Iterator[float]:
        while True:
            # Lengths of bursts are geometric, so that the mean gap stays 1.
            yield draw.expovariate(1.0) * burst if draw.random() < 1 / burst else 0.0

    return _arriving(calls, gaps(), load, device, slots, draw, owners)


def programs(
    seed: int,
    count: int,
    load: float,
    device: DeviceModel,
    slots: int,
    shape: Shape,
    owners: int = 1,
    mean: float = 6.0,
    alpha: float = 1.5,
    tool: float = 0.0,
) -> list[WorkloadTask]:
    """Agent programs: Poisson arrivals, each a chain of calls whose number has a heavy tail.

    The number is Pareto with index `alpha`, `mean` calls before rounding up, cut at 200. Waits for tools are
    exponential, `tool` seconds on average.
    """
    draw = random.Random(seed)
    least = mean * (alpha - 1) / alpha
    made = []
    for _ in range(count):
        length = min(math.ceil(least * draw.paretovariate(alpha)), 200)
        waits = [draw.expovariate(1 / tool) if tool and place else 0.0 for place in range(length)]
        made.append(chain([shape.call(draw, wait) for wait in waits]))
    return _arriving(made, _exponential(draw), load, device, slots, draw, owners)


def agents(
    seed: int, count: int, shape: Shape, turns: int = 10, think: float = 2.0, tool: float = 0.5, owners: int = 1
) -> list[WorkloadTask]:
    """A closed loop: `count` agents, all there from the start, of `turns` calls each.

    After a call an agent waits for a tool, or one time in three thinks; both times are exponential.
    """
    draw = random.Random(seed)
    tasks = []
    for number in range(count):
        waits = [draw.expovariate(1 / think)]
        waits += [draw.expovariate(1 / (think if draw.random() < 1 / 3 else tool)) for _ in range(turns - 1)]
        calls = chain([shape.call(draw, wait) for wait in waits])
        tasks.append(WorkloadTask(arrival=0.0, calls=calls, name=f"agent {number}", owner=f"owner {number % owners}"))
    return tasks


def _exponential(draw: random.Random) -> Iterator[float]:
    while True:
        yield draw.expovariate(1.0)


def _arriving(
    calls: list[tuple[WorkloadCall, ...]],
    gaps: Iterator[float],
    load: float,
    device: DeviceModel,
    slots: int,
    draw: random.Random,
    owners: int,
) -> list[WorkloadTask]:
    """Tasks with gaps between arrivals that make up the load; `gaps` have a mean of 1."""
    if not calls:
        raise InvalidWorkload("a workload of no tasks; ask for one at least")
    times = arrivals(calls, gaps, load, device, slots)
    return [
        WorkloadTask(arrival=time, calls=one, owner=f"owner {draw.randrange(owners)}")
        for time, one in zip(times, calls, strict=True)
    ]
