"""The places of a tool: granted in order, and held until the function returns, even if the caller has ended."""

from __future__ import annotations

import asyncio

import pytest

from ipc.errors import (
    Busy,
    TimedOut,
)
from ipc.syscalls import Resume, Suspend, UseTool
from llmosd.context import Context
from tests.support.system import System
from tests.support.tool_bench import Bench, Hanging, use


async def test_calls_beyond_the_concurrency_wait_in_line_and_run_in_its_order(
    system: System, bench: Bench, hanging: Hanging
) -> None:
    bench.add(hanging.function(), concurrency=1)
    order: list[int] = []

    async def program(ctx: Context, number: int) -> None:
        order.append(await ctx.tool("hang", number=number))

    name = system.program(program)
    agents = [system.spawn(name, number) for number in range(4)]
    await bench.hung(hanging)
    row = bench.row("hang")
    assert (row.running, row.queued) == (1, 3)
    system.kernel.process_exit.end(agents[2], "killed", "by the test")
    with pytest.raises(Busy):
        await system.call(UseTool("hang", wait=False))
    hanging.go.set()
    await bench.idle("hang")
    for number in (0, 1, 3):
        await system.result(agents[number])
    assert order == [0, 1, 3]


async def test_a_call_gives_up_at_its_timeout_and_the_place_stays_taken_until_the_function_returns(
    system: System, bench: Bench, hanging: Hanging
) -> None:
    bench.add(hanging.function(), concurrency=1, timeout=30.0)
    start = system.loop.time()
    first = system.spawn(use, "hang", None, 5.0)
    await bench.hung(hanging)
    with pytest.raises(TimedOut, match="holds its place"):
        await system.result(first)
    assert system.loop.time() - start == 5.0
    row = bench.row("hang")
    assert (row.running, row.abandoned, bench.tools.workers.threads) == (1, 1, 1)
    with pytest.raises(TimedOut, match="no free place"):
        await system.run(use, "hang")
    assert system.loop.time() - start == 35.0
    hanging.go.set()
    await bench.idle("hang")
    assert await system.run(use, "hang", {"number": 7}) == 7
    row = bench.row("hang")
    assert (row.running, row.abandoned, bench.tools.workers.threads) == (0, 0, 1)


async def test_a_killed_caller_waits_no_longer_and_the_place_comes_back(
    system: System, bench: Bench, hanging: Hanging
) -> None:
    bench.add(hanging.function(), concurrency=1)
    agent = system.spawn(use, "hang")
    await bench.hung(hanging)
    assert agent.state() == ("blocked", "tool hang")
    system.kernel.process_exit.end(agent, "killed", "by the test")
    assert (await system.status(agent)).reason == "killed"
    waiting = system.spawn(use, "hang", {"number": 2})
    hanging.go.set()
    await bench.idle("hang")
    assert await system.result(waiting) == 2


async def test_a_place_given_to_a_caller_that_was_killed_at_once_is_passed_on(
    system: System, bench: Bench, hanging: Hanging
) -> None:
    bench.add(hanging.function(), concurrency=1)
    agents = [system.spawn(use, "hang", {"number": number}) for number in range(3)]
    await bench.hung(hanging)
    limit = bench.tools._limits["hang"]
    waiter = limit.queue[0]
    hanging.go.set()
    while not waiter.granted:
        await asyncio.sleep(0)
    system.kernel.process_exit.end(agents[1], "killed", "by the test")
    assert await system.result(agents[2]) == 2
    assert (limit.running, len(limit.queue)) == (0, 0)


async def test_a_suspended_caller_gets_its_result_when_it_is_resumed(
    system: System, bench: Bench, hanging: Hanging
) -> None:
    bench.add(hanging.function())
    agent = system.spawn(use, "hang", {"number": 3}, 60.0)
    await bench.hung(hanging)
    await system.call(Suspend(agent.pid))
    hanging.go.set()
    await bench.idle("hang")
    await asyncio.sleep(100)  # past the timeout: a result that arrived in time is delivered
    assert agent.state() == ("suspended", "")
    await system.call(Resume(agent.pid))
    assert await system.result(agent) == 3
