"""Dining philosophers: agents share forks by named locks; the deadlock is found, and resolved by who closed it."""

from typing import Any

from llmosd import Context, DeadlockDetected, agent

BITE = 0.01  # seconds


@agent(summary="Dining philosophers: the deadlock is found, and all eat.")
async def philosophers(ctx: Context, count: int = 5, meals: int = 2) -> dict[str, Any]:
    """`count` of them, two or more, eat `meals` times each. Reports how often each ate, and the deadlocks found."""
    if count < 2:
        raise ValueError(f"one philosopher has one fork, and needs two: count is {count}")
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
    """Eats `meals` times with the forks left and right of `seat`; reports that, and the deadlocks that it closed."""
    left = ctx.lock(f"fork {seat} of {table}")
    right = ctx.lock(f"fork {(seat + 1) % count} of {table}")
    deadlocks: list[str] = []
    eaten = 0
    async with left:
        # All have their left fork before anyone reaches for the right one: it cannot go well.
        await ctx.barrier(table, count).wait()
        eaten += await _eat(ctx, right, deadlocks)
    while eaten < meals:
        async with left:
            eaten += await _eat(ctx, right, deadlocks)
    return {"eaten": eaten, "deadlocks": deadlocks}


async def _eat(ctx: Context, fork: Any, deadlocks: list[str]) -> bool:
    """One meal with the other fork. False if that would be a deadlock: then give the first one back."""
    try:
        async with fork:
            await ctx.sleep(BITE)
            return True
    except DeadlockDetected as knot:
        deadlocks.append(knot.message)
        return False
