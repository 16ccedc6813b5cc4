"""Durable agents between two moments: what one of them sees if the daemon dies there, or another comes first."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.syscalls import Send
from llmosd.context import Context
from tests.unit.durable_world import World

pytestmark = pytest.mark.real_time


async def test_what_is_said_anew_before_a_checkpoint_comes_though_more_was_said_after_it(world: World) -> None:
    async def desk(ctx: Context) -> list[str]:
        await ctx.register("desk")
        seen = []
        while True:
            message = await ctx.receive()
            if message.type == "enough":
                return seen
            seen.append(message.body)
            if message.type == "ask":
                await ctx.reply(message, "answer")

    async def looper(ctx: Context) -> list[Any]:
        await ctx.send("desk", "begin")
        await ctx.call("desk", "question", type="ask")
        state = await ctx.checkpoint(0)
        await ctx.send("desk", f"after {state}")
        await ctx.call("desk", f"question after {state}", type="ask")
        await ctx.receive()
        await ctx.send("desk", None, type="enough")
        return ["done"]

    world.agent(desk)
    world.agent(looper)
    async with world.life() as life:
        listening = await life.submit("desk")
        await life.until(lambda: life.system.kernel.messaging._names._holders)
        task = await life.submit("looper")
        pid = max(process.pid for process in life.system.table.alive.values())
        await life.until(lambda: life.calls.get("Receive", 0) == 6)
        await life.rows("SELECT 1")
        folder = life.folder
    for receives in (4, 2):  # anew in the next life, and as it was then in the one after that
        async with world.life(folder) as life:
            await life.until(lambda: life.calls.get("Receive", 0) == receives)  # noqa: B023 - asked at once
            await life.rows("SELECT 1")
    async with world.life(folder) as life:
        await life.system.call(Send(pid, "go"))
        assert await life.result(task) == ["done"]
        once = ["begin", "question"]
        assert await life.result(listening) == [*once, "after 0", "question after 0", *once]
