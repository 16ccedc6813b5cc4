"""Several simulated models under one budget: what the tests of residency share."""

from __future__ import annotations

import asyncio
from typing import Any

from ipc.syscalls import Models
from kernel.drivers.simulated import simulated_token
from kernel.slots.model import ModelSpec
from kernel.slots.settings import ResourceSettings
from llmosd.context import Context

GB = 10**9
FAST = {"step_seconds": 0.1, "sequence_seconds": 0.0, "prompt_seconds": 0.0, "load_seconds": 2.0}


def simulated(**options: Any) -> ModelSpec:
    slots = options.pop("slots", 2)
    settings = {name: options.pop(name) for name in ("keep_alive", "load_timeout") if name in options}
    return ModelSpec(driver="simulated", slots=slots, lease=4, options=FAST | options, **settings)


# The options differ, so that what is measured of one is not taken for the other.
TWO = {"one": simulated(), "two": simulated(context=8191)}
THREE = {**TWO, "three": simulated(context=8190)}
HOLDS_ONE = ResourceSettings(memory=15 * GB // 10, collate=10.0)
HOLDS_TWO = ResourceSettings(memory=25 * GB // 10, collate=10.0)


async def teller(ctx: Context, model: str, tokens: int = 20, seed: int = 1) -> str:
    return await ctx.generate("one two three", model=model, max_tokens=tokens, seed=seed)


def text_of(seed: int, tokens: int = 20) -> str:
    return "".join(simulated_token(seed, n)[1] for n in range(tokens))


async def states(system: Any) -> dict[str, str]:
    return {row.name: row.state for row in await system.call(Models())}


def alive(system: Any) -> list[str]:
    return sorted(driver.name for driver in system.launcher.alive)


def loads(system: Any) -> list[str]:
    return [driver.name for driver in system.launcher.drivers]


def prepare(system: Any) -> None:
    """Have the machine know the models, and the daemon the agent."""
    system.program(teller)
    system.machine.sizes.update(one=GB, two=GB, three=GB, other=GB)


async def settle_sizes(system: Any) -> None:
    """Have all models measured, and none loaded."""
    names = list(await states(system))
    for model in names:
        await system.run("teller", model=model, tokens=1)
    for runtime in system.kernel.resources._runtimes.values():
        if runtime.state.ready_at is not None:
            runtime.leave("the test begins")
    await asyncio.sleep(5)
    system.launcher.drivers.clear()
    assert await states(system) == dict.fromkeys(names, "unloaded")
