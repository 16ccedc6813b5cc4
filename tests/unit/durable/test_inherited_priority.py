"""Durable processes inherit the priorities of their callers for as long as these wait, like all processes."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.syscalls import Nice, Send, Submit
from kernel.core.process import Process
from kernel.dispatch.priority_inheritance import effective_priority
from llmosd.context import Context
from tests.support.durable_world import World

pytestmark = pytest.mark.real_time


def urgency(process: Process) -> int:
    return effective_priority(next(iter(process.threads)))


async def test_a_reply_and_a_timeout_return_the_priority_of_the_caller(world: World) -> None:
    async def server(ctx: Context) -> str:
        for _ in range(2):
            call = await ctx.receive(type="ask")
            await ctx.receive(type="go")
            await ctx.reply(call, "answer")
        await ctx.receive(type="go")
        return "done"

    async def caller(ctx: Context, pid: int, timeout: float | None) -> Any:
        return await ctx.call(pid, "question", type="ask", timeout=timeout)

    world.agent(server)
    program = world.agent(caller)
    async with world.life() as life:

        def process(name: str) -> Process:
            return next(one for one in life.system.table.alive.values() if one.program == name)

        serving = await life.submit("server")
        target = process("server")
        asking = await life.submit(program, pid=target.pid, timeout=None)
        await life.until(lambda: target.pending_calls)
        await life.system.call(Nice(process(program).pid, 20))
        assert urgency(target) == 20
        await life.system.call(Send(target.pid, None, type="go"))
        assert await life.result(asking) == "answer"
        assert urgency(target) == 0
        call = Submit(program, {"pid": target.pid, "timeout": 0.3}, priority=20, detach=True)
        asking = (await life.system.call(call)).id
        with pytest.raises(Exception, match="did not reply within"):
            await life.result(asking)
        assert urgency(target) == 0
        for _ in range(2):
            await life.system.call(Send(target.pid, None, type="go"))
        assert await life.result(serving) == "done"
