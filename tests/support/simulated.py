"""The simulated model: its usual options, the text that it generates, and a check that no call leaves anything behind.

Used by tests of everything that calls a model. It is about the one model `sim`, and never about several under one
budget: see `many_models`.
"""

from __future__ import annotations

from typing import Any

from kernel.drivers.simulated.sequence import simulated_token
from llmosd.context import Context
from tests.support.system import System

FAST = {"step_seconds": 1.0, "sequence_seconds": 0.0, "prompt_seconds": 0.0, "reply_tokens": 8}


def text_of(seed: int, tokens: int = 20) -> str:
    """The text that the simulated device generates without disturbance."""
    return "".join(simulated_token(seed, n)[1] for n in range(tokens))


def assert_nothing_left(system: System) -> None:
    """No call has a slot, waits for one, or is known to the driver."""
    active = system.runtime().active
    assert (active.leases.taken, active.leases.queue, active.sequences) == (set(), [], {})
    assert (system.driver.sequences, system.driver.queries) == ({}, {})


async def answer(system: System, **options: Any) -> Any:
    """The answer of `ctx.generate` with these keywords, as the agent sees it."""
    seen: list[Any] = []

    async def agent(ctx: Context) -> None:
        seen.append(await ctx.generate("one two three", **options))

    await system.run(agent)
    return seen[0]
