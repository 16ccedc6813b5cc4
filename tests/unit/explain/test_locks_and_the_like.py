"""Why a process waits for a lock, a semaphore, a condition, a barrier or an event."""

from __future__ import annotations

import asyncio

import pytest

from llmosd.context import Context
from tests.support.explaining import pids, why
from tests.support.system import System


async def holder(ctx: Context) -> None:
    async with ctx.lock("orders"):
        await ctx.sleep(60)


async def locker(ctx: Context) -> None:
    async with ctx.lock("orders"):
        pass


async def hurried(ctx: Context) -> None:
    await ctx.lock("orders").acquire(timeout=30)


async def permit(ctx: Context) -> None:
    async with ctx.semaphore("gpu", 2):
        await ctx.receive()


async def test_a_wait_for_a_lock_names_the_holder_the_place_and_what_the_holder_does(system: System) -> None:
    first = system.spawn(holder)
    await asyncio.sleep(1)
    second, third = system.spawn(locker), system.spawn(hurried)
    await asyncio.sleep(3)
    explanation = await why(system, third)
    wait = explanation.wait
    assert (explanation.state, wait.kind, wait.doing) == ("blocked", "lock", "waiting for lock orders")
    assert (wait.seconds, wait.timeout) == pytest.approx((3.0, 27.0))
    assert (wait.place, wait.line, pids(wait.ahead), pids(wait.holders)) == (2, 2, [second.pid], [first.pid])
    assert [(one.pid, one.doing) for one in explanation.chain] == [(first.pid, "sleeping")]
    assert explanation.text.startswith(
        f"Process {third.pid} (hurried) has been waiting 3.0 s for lock orders. It is 2nd of 2 in line. Ahead of it is "
        f"process {second.pid} (locker). The lock is held by process {first.pid} (holder). Process {first.pid} "
        f"(holder) has been sleeping for 4.0 s. The wait ends when process {first.pid} releases it or ends "
        "and those ahead of it have had it, or in 27 s, when it times out."
    )


async def test_the_holders_of_all_permits_of_a_semaphore_are_named(system: System) -> None:
    holders = [system.spawn(permit) for _ in range(2)]
    waiting = system.spawn(permit)
    await asyncio.sleep(2)
    explanation = await why(system, waiting)
    assert explanation.wait.kind == "semaphore"
    assert pids(explanation.wait.holders) == pids(holders)
    assert "All of its 2 permits are taken." in explanation.text
    assert "The wait ends when a holder releases a permit or ends." in explanation.text


async def test_of_many_holders_five_are_named_and_the_rest_counted(system: System) -> None:
    async def one_of_eight(ctx: Context) -> None:
        async with ctx.semaphore("many", 8):
            await ctx.receive()

    system.program(one_of_eight)
    holders = [system.spawn("one_of_eight") for _ in range(8)]
    waiting = system.spawn("one_of_eight")
    await asyncio.sleep(1)
    explanation = await why(system, waiting)
    assert (pids(explanation.wait.holders), explanation.wait.holder_count) == (pids(holders[:5]), 8)
    assert f"process {holders[4].pid} (one_of_eight) and 3 others." in explanation.text


async def test_a_barrier_counts_those_that_are_missing(system: System) -> None:
    async def comes(ctx: Context) -> None:
        await ctx.barrier("start", 3).wait()

    process = system.spawn(comes)
    await asyncio.sleep(1)
    explanation = await why(system, process)
    assert explanation.wait.kind == "barrier"
    assert "1 of 3 threads has arrived. The wait ends when 2 more threads arrive." in explanation.text


async def test_an_event_is_ended_by_any_thread_that_sets_it(system: System) -> None:
    async def waits(ctx: Context) -> None:
        await ctx.event("go").wait()

    process = system.spawn(waits)
    await asyncio.sleep(1)
    explanation = await why(system, process)
    assert (explanation.wait.kind, explanation.wait.holders) == ("event", [])
    assert "waiting 1.0 s for event go. The wait ends when a thread sets the event." in explanation.text


async def test_a_condition_is_ended_by_a_notice_and_then_by_its_lock(system: System) -> None:
    async def waits(ctx: Context) -> None:
        async with ctx.condition("full") as condition:
            await condition.wait()

    async def notifies(ctx: Context) -> None:
        async with ctx.condition("full") as condition:
            await condition.notify()
            await ctx.sleep(50)

    waiting = system.spawn(waits)
    await asyncio.sleep(1)
    explanation = await why(system, waiting)
    assert explanation.wait.kind == "condition"
    assert "for condition full. The wait ends when a thread that holds the lock" in explanation.text
    notifier = system.spawn(notifies)
    await asyncio.sleep(1)
    explanation = await why(system, waiting)
    assert (explanation.wait.kind, pids(explanation.wait.holders)) == ("lock", [notifier.pid])
