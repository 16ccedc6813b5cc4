"""Agents that the tests of several files run."""

from __future__ import annotations

from llmosd.context import Context


async def forever(ctx: Context) -> None:
    await ctx.receive()


async def adder(ctx: Context, a: int, b: int = 2) -> int:
    return a + b
