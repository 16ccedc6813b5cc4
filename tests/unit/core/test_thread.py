"""Threads: the time that they are charged, the errors raised in them, and the references that keep them alive."""

from __future__ import annotations

import asyncio
import gc
import time

import anyio
import anyio.to_thread
import pytest

from ipc.errors import Killed
from ipc.syscalls import Kill
from kernel.core.process import Thread
from kernel.dispatch.dispatcher import STEPS_PER_TURN
from kernel.gate import CALLS_PER_TURN
from llmosd.context import Context
from tests.support.system import System

# ---- accounting


@pytest.mark.real_time
async def test_processor_time_is_charged_to_the_process(system: System) -> None:
    computed = 0.0

    async def busy(ctx: Context) -> None:
        nonlocal computed
        began = time.perf_counter()
        while computed < 0.03:
            computed = time.perf_counter() - began
        await ctx.sleep(0.05)

    began = time.perf_counter()
    status = await system.status(system.spawn(busy))
    whole = time.perf_counter() - began
    # On any machine, a step lasts at least as long as its computation, and no step runs while the agent sleeps.
    assert computed <= status.usage.cpu_seconds <= whole - 0.04


async def test_what_is_printed_of_a_thread_names_its_process_and_what_it_waits_for(system: System) -> None:
    async def listens(ctx: Context) -> None:
        await ctx.receive()

    process = system.spawn(listens)
    await system.turns()
    (main,) = process.threads
    main.set_name("listener")
    assert repr(main) == f"<Thread listener of pid {process.pid} blocked message>"


async def test_a_burst_of_calls_gives_the_loop_back(system: System) -> None:
    async def chatty(ctx: Context) -> None:
        while True:
            await ctx.send(ctx.pid, None)
            await ctx.receive()

    process = system.spawn(chatty)
    await system.turns(3)
    assert 0 < process.calls <= 3 * STEPS_PER_TURN * CALLS_PER_TURN
    await system.call(Kill(process.pid))


async def test_an_error_of_the_kernel_is_raised_where_the_agent_waits(system: System) -> None:
    async def victim(ctx: Context) -> None:
        await ctx.receive()

    async def waiter(ctx: Context, pid: int) -> str:
        try:
            await ctx.wait(pid)
        except Killed as error:
            return error.message
        return ""

    target = system.spawn(victim)
    process = system.spawn(waiter, pid=target.pid)
    await system.turns()
    await system.call(Kill(target.pid))
    assert "killed by process" in await system.result(process)


# ---- mistakes of other runtimes


async def test_tasks_that_nobody_holds_are_not_collected(system: System) -> None:
    done: list[int] = []

    async def agent(ctx: Context) -> None:
        async def background(n: int) -> None:
            await asyncio.sleep(1)
            await ctx.sleep(1)
            done.append(n)

        for n in range(100):
            asyncio.create_task(background(n))  # noqa: RUF006 - only the process holds it, which is the point
        gc.collect()
        await ctx.sleep(1.5)
        gc.collect()
        await ctx.sleep(1)

    await system.run(agent)
    assert sorted(done) == list(range(100))


async def test_a_killed_agent_that_takes_its_time_to_clean_up_does_not_spin(system: System) -> None:
    steps: list[str] = []

    class Count:
        def before_step(self, thread: Thread) -> None:
            steps.append(thread.process.program)

    async def slow(ctx: Context) -> None:
        try:
            await ctx.receive()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.5)
            steps.append("clean")

    process = system.spawn(slow)
    await system.turns()
    system.kernel.instruments.add(Count())
    begin = system.loop.time()
    await system.call(Kill(process.pid))
    assert steps.index("clean") < 5
    assert 1.5 <= system.loop.time() - begin < 2
