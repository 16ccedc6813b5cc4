"""A durable agent of the load, whose file is broken at some starts of the daemon."""

from __future__ import annotations

from llmosd import Context, agent


@agent(durable=True)
async def fragile(ctx: Context, number: int, count: int) -> list:
    """Counts in its memory; returns what it has counted."""
    counted = []
    for step in range(count):
        await ctx.memory.set("step", number + step)
        await ctx.sleep(0.01)
        counted.append(await ctx.memory.get("step"))
    return counted
