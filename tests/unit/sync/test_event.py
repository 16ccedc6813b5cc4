"""Events: setting an event wakes all threads that wait for it, and it stays set until it is cleared."""

from __future__ import annotations

import pytest

from ipc.syscalls import Locks
from llmosd.context import Context
from tests.support.locks import row

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_an_event_lets_all_go_on_that_waited_also_if_it_is_cleared_at_once(system):
    async def waiter(ctx: Context) -> str:
        await ctx.event("e").wait()
        return "went on"

    async def setter(ctx: Context) -> None:
        await ctx.event("e").set()
        await ctx.event("e").clear()

    system.program(waiter)
    waiters = [system.spawn("waiter") for _ in range(2)]
    await system.turns()
    await system.run(setter)
    assert [await system.result(process) for process in waiters] == ["went on", "went on"]


async def test_an_event_stays_set_until_it_is_cleared(system):
    async def use(ctx: Context, what: str) -> None:
        await getattr(ctx.event("e"), what)()

    system.program(use)
    await system.run("use", "set")
    assert (await row(system))[0] == "set"
    await system.run("use", "wait")
    await system.run("use", "clear")
    assert await system.call(Locks()) == []
