"""The shutdown of the daemon: new tasks are refused, running tasks may end, and no agent may request a shutdown."""

from __future__ import annotations

import asyncio

import pytest

from ipc.errors import NotPermitted, ShuttingDown
from ipc.syscalls import Shutdown, Spawn
from llmosd.context import Context
from tests.support.agents import listener
from tests.support.system import System


async def test_draining_refuses_new_tasks_and_lets_running_ones_end(system: System) -> None:
    async def child(ctx: Context) -> str:
        return "done"

    async def slow(ctx: Context) -> str:
        await ctx.sleep(5)
        result: str = await ctx.wait(await ctx.spawn("child"))
        return result

    system.program(child)
    process = system.spawn(slow)
    draining = asyncio.ensure_future(system.kernel.drain(60))
    await system.turns()
    with pytest.raises(ShuttingDown):
        await system.call(Spawn("slow"))
    await draining
    assert process.status.reason == "done"


async def test_draining_kills_what_does_not_end_in_time(system: System) -> None:
    process = system.spawn(listener)
    before = system.loop.time()
    await system.kernel.drain(10)
    assert process.status.reason == "killed"
    assert system.loop.time() - before == pytest.approx(10)


async def test_an_agent_may_not_shut_the_daemon_down(system: System) -> None:
    process = system.spawn(listener)
    with pytest.raises(NotPermitted):
        await system.call(Shutdown(), process)
