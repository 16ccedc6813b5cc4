"""Barriers: they open when all threads have arrived, and do not count threads that have given up."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.errors import TimedOut
from llmosd.context import Context
from tests.support.locks import row

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_a_barrier_opens_when_all_are_there_and_closes_again(system):
    async def party(ctx: Context, n: int) -> list[Any]:
        barrier = ctx.barrier("b", 3)
        await ctx.sleep(n)
        first = await barrier.wait()
        at = system.loop.time() - start
        await ctx.sleep(n)
        return [first, at, await barrier.wait(), system.loop.time() - start]

    start = system.loop.time()
    system.program(party)
    parties = [system.spawn("party", n) for n in range(3)]
    results = [await system.result(process) for process in parties]
    assert results == [[False, 2, False, 4], [False, 2, False, 4], [True, 2, True, 4]]


async def test_one_that_gives_up_at_a_barrier_no_longer_counts(system):
    async def party(ctx: Context, timeout: float | None) -> bool:
        return await ctx.barrier("b", 2).wait(timeout)

    system.program(party)
    with pytest.raises(TimedOut, match="barrier b"):
        await system.run("party", 1)
    second = system.spawn("party", None)
    await system.turns()
    assert await row(system) == ("1 of 2 waiting", [], [second.pid])
    assert await system.run("party", 1) is True
    assert await system.result(second) is False
