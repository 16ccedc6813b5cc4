"""Calls of a context in another task or thread: refused, or made by `ctx.from_thread`."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from ipc.errors import InvalidCall, Killed
from kernel.programs.origin import ORIGIN
from llmosd import Context
from tests.support.system import System


async def test_a_call_outside_the_threads_of_a_process_is_refused(system: System) -> None:
    async def agent(ctx: Context) -> str:
        task = asyncio.Task(ctx.receive(timeout=1))  # not made by the loop, so it is no thread
        with pytest.raises(InvalidCall, match=r"ctx\.from_thread"):
            await task
        return "refused"

    assert await system.run(agent) == "refused"


@pytest.mark.real_time
async def test_from_thread_returns_the_result_and_raises_the_error_of_the_call(system: System) -> None:
    async def agent(ctx: Context) -> list[Any]:
        async def double(number: int, *, plus: int) -> int:
            await ctx.sleep(0)
            return 2 * number + plus

        def work() -> list[Any]:
            doubled = ctx.from_thread(double, 4, plus=1)
            with pytest.raises(ZeroDivisionError):
                ctx.from_thread(lambda: 1 / 0)
            with pytest.raises(InvalidCall, match=r"ctx\.from_thread"):
                ctx.log("directly")
            ctx.from_thread(ctx.log, "by the loop")
            return [doubled, ctx.from_thread(lambda: ORIGIN.get().pid) == ctx.pid]

        with pytest.raises(InvalidCall, match="here, await the call"):
            ctx.from_thread(ctx.sleep, 0)
        return await asyncio.to_thread(work)

    process = system.spawn(agent)
    assert await system.result(process) == [9, True]
    assert [line.event for line in process.log or ()] == ["by the loop"]


@pytest.mark.real_time
@pytest.mark.parametrize("waits", [True, False])
async def test_from_thread_raises_killed_when_the_process_ends(system: System, waits: bool) -> None:
    outcome: list[object] = []
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()

    async def agent(ctx: Context) -> None:
        def work() -> None:
            begun.set()
            try:
                if not waits:
                    go_on.wait(60)
                ctx.from_thread(ctx.sleep, 600)
            except Exception as error:
                outcome.append(error)
            over.set()

        asyncio.get_running_loop().run_in_executor(None, work)
        await ctx.sleep(600)

    process = system.spawn(agent)
    await asyncio.to_thread(begun.wait, 60)
    if waits:
        await system.until(lambda: len(process.threads) == 2)
    system.kernel.process_exit.end(process, "killed", "the test kills it")
    await system.status(process)
    go_on.set()
    assert await asyncio.to_thread(over.wait, 60)
    assert [type(error) for error in outcome] == [Killed]
