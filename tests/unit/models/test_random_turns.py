"""Random calls to models that do not fit into memory together: loads, waits and shares stay within their bounds."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from ipc.syscalls import Kill
from kernel.models.settings import ResourceSettings
from kernel.models.spec import ModelSpec
from kernel.models.turns import LEAST_TURN
from llmosd.context import Context
from tests.support.boot import boot
from tests.support.many_models import GB, loads, prepare, settle_sizes, simulated
from tests.support.system import System

COLLATE = 4.0
TICK = 0.1


def some_models(random: Random, count: int) -> dict[str, ModelSpec]:
    """Models of different load times; the options differ, because sizes are measured by options."""
    return {
        f"m{number}": simulated(context=8000 + number, load_seconds=random.choice([0.5, 2.0, 6.0]), slots=2)
        for number in range(count)
    }


async def boot_models(folder: Path, random: Random, count: int) -> System:
    """A kernel whose budget holds the largest model, or two of the smaller ones."""
    resources = ResourceSettings(memory=21 * GB // 10, collate=COLLATE)
    system = boot(folder, models=some_models(random, count), resources=resources)
    prepare(system)
    system.machine.sizes.update({f"m{number}": random.choice([6, 10, 20]) * GB // 10 for number in range(count)})
    await settle_sizes(system)
    return system


class Watch:
    """Measures for how long models waited while all models in memory were idle, since one was last loaded."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._loads = 0
        self._idle: dict[str, float] = defaultdict(float)  # by model that waits
        self.longest_idle = 0.0

    async def run(self) -> None:
        """Look at all models again and again."""
        while True:
            await asyncio.sleep(TICK)
            self._look()

    def _look(self) -> None:
        if len(loads(self._system)) > self._loads:
            self._loads = len(loads(self._system))
            self._idle.clear()
        runtimes = list(self._system.runtimes)
        if not all(one.state.idle_since is not None for one in runtimes if one.takes_memory):
            return
        for one in runtimes:
            if one.state.name == "waiting":
                self._idle[one.name] += TICK
                self.longest_idle = max(self.longest_idle, self._idle[one.name])


@pytest.mark.parametrize("count", [2, 3, 5])
async def test_random_calls_wait_for_work_and_load_models_for_it_only(
    count: int, tmp_path: Path, trial: Callable[..., int]
) -> None:
    for seed in range(trial(short=2, long=100)):
        random = Random(100 * count + seed)
        system = await boot_models(tmp_path / str(seed), random, count)
        watch = Watch(system)
        watching = asyncio.ensure_future(watch.run())
        served: list[str] = []
        work = 0.0

        async def client(ctx: Context, model: str, calls: list[tuple[float, int]]) -> None:
            for pause, tokens in calls:
                await ctx.sleep(pause)
                await ctx.generate("x", model=model, max_tokens=tokens)
                served.append(model)  # noqa: B023

        system.program(client)
        processes = []
        for _ in range(4 * count):
            calls = [(random.choice([0.0, 0.2, 1.0, 5.0]), random.choice([1, 5, 30])) for _ in range(3)]
            work += sum(0.1 * tokens for _, tokens in calls)
            model, priority = f"m{random.randrange(count)}", random.choice([0, 0, 0, 5])
            processes.append(system.spawn("client", model=model, calls=calls, priority=priority))
        for process in processes:
            assert (await system.status(process)).error is None
        watching.cancel()
        # A turn serves a call to its end, or it works for half of `collate` at least.
        assert len(loads(system)) <= count + len(served) + work / (LEAST_TURN * COLLATE), seed
        assert watch.longest_idle <= LEAST_TURN * COLLATE + 2 * TICK, seed
        await system.end()
        await system.kernel.close()


@pytest.mark.parametrize("count", [2, 3, 5])
async def test_busy_models_of_any_sizes_get_turns_of_equal_length(count: int, tmp_path: Path) -> None:
    random = Random(count)
    system = await boot_models(tmp_path, random, count)
    system.machine.sizes.update({f"m{number}": 2 * GB for number in range(count)})
    served: Counter[str] = Counter()

    async def looping(ctx: Context, model: str) -> None:
        while True:
            await ctx.generate("x", model=model, max_tokens=5)
            served[model] += 1

    system.program(looping)
    processes = [system.spawn("looping", model=f"m{number}") for number in range(count)]
    await asyncio.sleep(150)
    for process in processes:
        await system.call(Kill(process.pid))
    assert len(served) == count
    assert max(served.values()) <= 4 * min(served.values()), served
    await system.end()
    await system.kernel.close()
