"""One simulated model and an agent that talks: what the tests of slots share."""

from __future__ import annotations

from typing import Any

from kernel.drivers.simulated import simulated_token
from llmosd.context import Context

FAST = {"step_seconds": 1.0, "sequence_seconds": 0.0, "prompt_seconds": 0.0, "reply_tokens": 8}


async def teller(ctx: Context, tokens: int = 20, seed: int = 1) -> str:
    return await ctx.generate("one two three", max_tokens=tokens, seed=seed)


def text_of(seed: int, tokens: int) -> str:
    """What the simulated device says, undisturbed."""
    return "".join(simulated_token(seed, n)[1] for n in range(tokens))


def runtime(system: Any) -> Any:
    return system.kernel.resources.runtime("sim")


def assert_nothing_left(system: Any) -> None:
    run = runtime(system)
    assert (run._slots.taken, run._slots.queue, run._sequences) == (set(), [], {})
    assert system.driver.device._sequences == {}
