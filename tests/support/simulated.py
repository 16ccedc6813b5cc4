"""The simulated model: its settings in most tests, the text that it generates, and what it may not leave behind.

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
    """What the simulated device generates, undisturbed."""
    return "".join(simulated_token(seed, n)[1] for n in range(tokens))


def assert_nothing_left(system: System) -> None:
    """No call has a slot, waits for one, or is known to the driver."""
    active = system.runtime().active
    assert (active.leases.taken, active.leases.queue, active.sequences) == (set(), [], {})
    assert (system.driver.sequences, system.driver.queries) == ({}, {})


async def answer(system: System, **options: Any) -> Any:
    """What `ctx.generate` answers with these keywords, as the agent sees it."""
    seen: list[Any] = []

    async def agent(ctx: Context) -> None:
        seen.append(await ctx.generate("one two three", **options))

    await system.run(agent)
    return seen[0]
