"""Agents that the tests of several files run.

Each does one thing that a test needs of some process. Agents that only one test needs are defined in that test.
"""

from __future__ import annotations

import asyncio

from llmosd.context import Context


async def forever(ctx: Context) -> None:
    """Sleeps for as long as any test lasts."""
    await ctx.sleep(1e9)


async def idle(ctx: Context) -> None:
    """Waits for nothing that the kernel knows of, so no timer and no message wakes it."""
    await asyncio.get_running_loop().create_future()


async def listener(ctx: Context) -> None:
    """Ends with the first message."""
    await ctx.receive()


async def adder(ctx: Context, a: int, b: int = 2) -> int:
    return a + b


async def teller(ctx: Context, tokens: int = 20, seed: int = 1, model: str | None = None) -> str:
    """Generates a text: see `tests.support.simulated.text_of`."""
    text: str = await ctx.generate("one two three", model=model, max_tokens=tokens, seed=seed)
    return text
