"""Suspending, resuming and ranking processes and threads, in whatever state they are."""

from __future__ import annotations

import asyncio

import pytest

from ipc.errors import InvalidCall, UnknownProcess
from ipc.syscalls import Kill, Nice, Resume, Send, Suspend, Threads, Wait
from llmosd.context import Context
from tests.support.agents import forever
from tests.support.system import System

# ---- nice


async def test_priority_orders_what_is_ready_and_changes_at_once(system: System) -> None:
    log: list[str] = []

    async def agent(ctx: Context, name: str) -> None:
        log.append(name)

    system.program(agent)
    low, middle, high = (
        system.spawn("agent", name, priority=n) for name, n in (("low", -5), ("middle", 0), ("high", 5))
    )
    assert await system.call(Nice(low.pid, 20)) == 20
    assert await system.call(Nice(high.pid, -30, relative=True)) == -20
    for process in (low, middle, high):
        await system.status(process)
    assert log == ["low", "middle", "high"]
    assert (low.priority, high.priority) == (20, -20)


async def test_children_and_threads_inherit_the_new_priority(system: System) -> None:
    async def agent(ctx: Context) -> list[int]:
        await ctx.receive()
        child = await ctx.spawn("forever")
        ctx.start_thread(ctx.sleep(1))
        return [child]

    system.program(forever)
    process = system.spawn(agent)
    await system.turns()
    await system.call(Nice(process.pid, 7))
    await system.call(Send(process.pid, "go"))
    await asyncio.sleep(0)
    while len(process.threads) < 2:
        await asyncio.sleep(0)
    assert [row.priority for row in await system.call(Threads(process.pid))] == [7, 7]
    assert [child.priority for child in process.children] == [7]


async def test_one_thread_alone_can_be_ranked(system: System) -> None:
    async def agent(ctx: Context) -> None:
        ctx.start_thread(ctx.sleep(10))
        await ctx.sleep(10)

    process = system.spawn(agent)
    await system.turns()
    assert await system.call(Nice(process.pid, 3, relative=True, thread="0-1")) == 3
    assert [row.priority for row in await system.call(Threads(process.pid))] == [0, 3]
    assert process.priority == 0


@pytest.mark.parametrize("priority", [-21, 21])
async def test_priorities_out_of_range_are_refused(system: System, priority: int) -> None:
    process = system.spawn(forever)
    with pytest.raises(InvalidCall, match="from -20 to 20"):
        await system.call(Nice(process.pid, priority))
    with pytest.raises(UnknownProcess):
        await system.call(Nice(999, 0))


# ---- any state


async def test_suspend_and_resume_before_the_first_step(system: System) -> None:
    process = system.spawn(forever)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(5)
    assert await system.thread_states(process) == {"0": "suspended"}
    assert process.calls == 0
    await system.call(Resume(process.pid))
    await system.turns()
    assert process.calls == 1


async def test_an_agent_that_suspends_itself_stops_at_its_next_call(system: System) -> None:
    steps: list[int] = []

    async def agent(ctx: Context) -> None:
        await ctx.suspend(ctx.pid)
        steps.append(1)
        await ctx.sleep(1)
        steps.append(2)

    process = system.spawn(agent)
    await asyncio.sleep(10)
    assert steps == [1]
    await system.call(Resume(process.pid))
    await system.status(process)
    assert steps == [1, 2]


async def test_one_thread_of_two_that_generate_is_suspended(system: System) -> None:
    async def agent(ctx: Context) -> list[str]:
        return list(await asyncio.gather(*(ctx.start_thread(ctx.generate("p", max_tokens=6)) for _ in range(2))))

    process = system.spawn(agent)
    await asyncio.sleep(2)
    await system.call(Suspend(process.pid, "0-1"))
    await asyncio.sleep(20)
    held = sorted(system.sequences(process), key=lambda sequence: sequence.id)
    assert [(sequence.thread.path, sequence.state) for sequence in held] == [("0-1", "parked")]
    await system.call(Resume(process.pid, "0-1"))
    assert len(await system.result(process)) == 2


async def test_a_suspended_process_still_answers_who_waits_once_it_is_killed(system: System) -> None:
    process = system.spawn(forever)
    await system.turns()
    await system.call(Suspend(process.pid))
    waiter = system.thread(system.kernel.gate.enter(system.client, Wait(process.pid)))
    await system.call(Kill(process.pid))
    assert (await waiter).reason == "killed"
