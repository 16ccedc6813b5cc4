"""Several simulated models under one memory budget, and a machine that knows their sizes.

Used by the tests of residency, of turns and of the machine's memory. It never decides which model is loaded.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ipc.syscalls import Models
from kernel.models.settings import ResourceSettings
from kernel.models.spec import ModelSpec
from tests.support.agents import teller
from tests.support.system import System

GB = 10**9
COSTS = {"step_seconds": 0.1, "sequence_seconds": 0.0, "prompt_seconds": 0.0, "load_seconds": 2.0}


def simulated(**options: Any) -> ModelSpec:
    slots = options.pop("slots", 2)
    settings = {name: options.pop(name) for name in ("keep_alive", "load_timeout") if name in options}
    return ModelSpec(driver="simulated", slots=slots, lease=4, options=COSTS | options, **settings)


# The options differ, so that the kernel never takes the measurements of one model for those of another.
TWO = {"one": simulated(), "two": simulated(context=8191)}
THREE = {**TWO, "three": simulated(context=8190)}
HOLDS_ONE = ResourceSettings(memory=15 * GB // 10, collate=10.0)
HOLDS_TWO = ResourceSettings(memory=25 * GB // 10, collate=10.0)


async def states(system: System) -> dict[str, str]:
    return {row.name: row.state for row in await system.call(Models())}


def alive(system: System) -> list[str]:
    return sorted(driver.name for driver in system.launcher.alive)


def loads(system: System) -> list[str]:
    return [driver.name for driver in system.launcher.drivers]


def prepare(system: System) -> None:
    """Give each model a size on the machine, and install the agent that calls it."""
    system.program(teller)
    system.machine.sizes.update(one=GB, two=GB, three=GB, other=GB)


async def settle_sizes(system: System) -> None:
    """Let the kernel measure all models, then unload them."""
    names = list(await states(system))
    for model in names:
        await system.run("teller", model=model, tokens=1)
    for runtime in system.runtimes:
        if runtime.state.ready_at is not None:
            runtime.unload("the test begins")
    await asyncio.sleep(5)
    system.launcher.drivers.clear()
    assert await states(system) == dict.fromkeys(names, "unloaded")
