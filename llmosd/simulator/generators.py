"""Generated workloads: Poisson arrivals, bursts, agents in a closed loop, and agent programs.

Used by experiments and the benches. Times are in seconds, lengths in tokens. `load` is a share of the rate that the
device can serve (see `llmosd.simulator.load`); above 1 the queue grows as long as tasks arrive. A workload depends on
nothing but the arguments of its function: the same seed gives the same tasks.
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

MOST_TOKENS = 4096  # of a prompt or a reply


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The lengths of calls, log-normal: medians in tokens. `spread`: the standard deviation of their logarithms."""

    prompt: int = 120
    tokens: int = 60
    spread: float = 0.8

    def call(self, draw: random.Random, wait: float = 0.0) -> WorkloadCall:
        """One call of random length."""
        prompt, tokens = (self._length(draw, median) for median in (self.prompt, self.tokens))
        return WorkloadCall(prompt=prompt, tokens=tokens, wait=wait)

    def _length(self, draw: random.Random, median: int) -> int:
        return min(max(round(median * math.exp(draw.gauss(0.0, self.spread))), 1), MOST_TOKENS)


def poisson(
    seed: int, count: int, load: float, device: DeviceModel, slots: int, shape: Shape, owners: int = 1
) -> list[WorkloadTask]:
    """`count` tasks of one call each that arrive independently of each other."""
    draw = random.Random(seed)
    calls: list[tuple[WorkloadCall, ...]] = [(shape.call(draw),) for _ in range(count)]
    return _arriving(calls, _exponential(draw), load, device, slots, draw, owners)


def bursty(
    seed: int, count: int, load: float, device: DeviceModel, slots: int, shape: Shape, owners: int = 1, burst: int = 10
) -> list[WorkloadTask]:
    """Like `poisson`, but tasks arrive in bursts of `burst` on average: a batch Poisson process."""
    draw = random.Random(seed)
    calls: list[tuple[WorkloadCall, ...]] = [(shape.call(draw),) for _ in range(count)]

    def gaps() -> Iterator[float]:
        while True:
            # So the lengths of bursts are geometric, and the mean gap is 1.
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
    """Agent programs: Poisson arrivals of chains of calls. The number of calls in a chain has a heavy tail.

    The number of calls is Pareto distributed with index `alpha` and a mean of `mean`, then rounded up, and at most 200.
    Waits for tools are exponential with a mean of `tool` seconds; 0: no waits.
    """
    draw = random.Random(seed)
    least = mean * (alpha - 1) / alpha
    chains = []
    for _ in range(count):
        length = min(math.ceil(least * draw.paretovariate(alpha)), 200)
        waits = [draw.expovariate(1 / tool) if tool and place else 0.0 for place in range(length)]
        chains.append(chain([shape.call(draw, wait) for wait in waits]))
    return _arriving(chains, _exponential(draw), load, device, slots, draw, owners)


def agents(
    seed: int, count: int, shape: Shape, turns: int = 10, think: float = 2.0, tool: float = 0.5, owners: int = 1
) -> list[WorkloadTask]:
    """A closed loop: `count` agents, all there from the start, which make `turns` calls each.

    Before its first call an agent thinks. Before each later call it thinks with a probability of one third, and
    otherwise waits for a tool. Both times are exponential, with means of `think` and `tool` seconds.
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
    """Tasks whose arrivals make up `load`. `gaps` are the times between them, before scaling; their mean is 1."""
    if not calls:
        raise InvalidWorkload("a workload of no tasks; ask for at least one")
    times = arrivals(calls, gaps, load, device, slots)
    return [
        WorkloadTask(arrival=time, calls=one, owner=f"owner {draw.randrange(owners)}")
        for time, one in zip(times, calls, strict=True)
    ]
