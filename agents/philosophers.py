"""Dining philosophers: agents share forks as named locks. The kernel finds the deadlock, and an agent resolves it."""

from typing import Any

from llmosd import Context, DeadlockDetected, agent

BITE = 0.01  # seconds


@agent(summary="Dining philosophers: the kernel finds the deadlock, and all eat.")
async def philosophers(ctx: Context, count: int = 5, meals: int = 2) -> dict[str, Any]:
    """Lets `count` philosophers, two or more, eat `meals` times each. Returns their meals, and the deadlocks found."""
    if count < 2:
        raise ValueError(f"count is {count}; it must be at least 2, because one philosopher has only one fork")
    table = f"table {ctx.pid}"
    pids = [
        await ctx.spawn("philosopher", {"table": table, "seat": seat, "count": count, "meals": meals})
        for seat in range(count)
    ]
    reports = [await ctx.wait(pid) for pid in pids]
    return {
        "eaten": [report["eaten"] for report in reports],
        "deadlocks": [knot for report in reports for knot in report["deadlocks"]],
    }


@agent(summary="One of the dining philosophers.")
async def philosopher(ctx: Context, table: str, seat: int, count: int, meals: int) -> dict[str, Any]:
    """Eats `meals` times with the forks left and right of `seat`. Returns the meals, and the deadlocks found."""
    left = ctx.lock(f"fork {seat} of {table}")
    right = ctx.lock(f"fork {(seat + 1) % count} of {table}")
    deadlocks: list[str] = []
    eaten = 0
    async with left:
        # All philosophers hold their left fork before one reaches for the right fork: a deadlock is certain.
        await ctx.barrier(table, count).wait()
        eaten += await _eat(ctx, right, deadlocks)
    while eaten < meals:
        async with left:
            eaten += await _eat(ctx, right, deadlocks)
    return {"eaten": eaten, "deadlocks": deadlocks}


async def _eat(ctx: Context, fork: Any, deadlocks: list[str]) -> bool:
    """Eats once with `fork` as the second fork. Returns False after a deadlock: the caller then releases its first."""
    try:
        async with fork:
            await ctx.sleep(BITE)
            return True
    except DeadlockDetected as knot:
        deadlocks.append(knot.message)
        return False
