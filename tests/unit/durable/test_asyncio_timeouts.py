"""`asyncio.timeout` around recorded calls: a block that ended in time also does so in a slow replay."""

from __future__ import annotations

import asyncio
import time

import pytest

from ipc.syscalls import Send
from kernel.gate import CALLS_PER_TURN
from llmosd.context import Context
from tests.support.durable_world import World

pytestmark = pytest.mark.real_time


async def test_a_timeout_that_passes_during_a_slow_replay_does_not_raise(world: World) -> None:
    slow, limit = False, 60.0

    async def agent(ctx: Context) -> list[str]:
        seen = []
        try:
            async with asyncio.timeout(limit):
                for _ in range(3 * CALLS_PER_TURN):
                    await ctx.time()
                if slow:
                    time.sleep(0.4)  # noqa: ASYNC251  as a busy machine does
                for _ in range(3 * CALLS_PER_TURN):
                    await ctx.time()
                seen.append("in time")
        except TimeoutError:
            seen.append("too late")
        await ctx.receive()
        return seen

    program = world.agent(agent)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: any(p.state()[1] == "message" for p in life.system.table.alive.values()))
        await life.system.tasks.flush()
    slow, limit = True, 0.3
    async with world.life(life.folder) as life:
        await life.until(lambda: any(p.program == "agent" for p in life.system.table.alive.values()))
        (process,) = [p for p in life.system.table.alive.values() if p.program == "agent"]
        await life.until(lambda: process.ended or process.state()[1] == "message")
        await life.system.call(Send(process.pid, "go on"))
        assert await life.result(task) == ["in time"]
