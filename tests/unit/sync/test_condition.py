"""Conditions: notified threads go on in order, each with the lock held, and no notice is lost."""

from __future__ import annotations

import asyncio

import pytest

from ipc.syscalls import Kill
from llmosd.context import Context
from tests.support.locks import hold, row

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_notified_threads_go_on_in_order_each_with_the_lock_held(system, order):
    async def waiter(ctx: Context, n: int) -> None:
        async with ctx.condition("c") as condition:
            await condition.wait()
            order.append((n, (await row(system))[1]))
            await ctx.sleep(1)

    system.program(waiter)
    waiters = [system.spawn("waiter", n) for n in range(3)]
    await system.turns()

    async def notifier(ctx: Context) -> tuple[int, int]:
        async with ctx.condition("c") as condition:
            one = await condition.notify()
        await ctx.sleep(10)
        assert len(order) == 1
        async with ctx.condition("c") as condition:
            return one, await condition.notify_all()

    assert await system.run(notifier) == [1, 2]
    for process in waiters:
        await system.result(process)
    assert order == [(n, [process.pid]) for n, process in enumerate(waiters)]


async def test_a_cancelled_wait_for_a_notice_leaves_with_the_lock_held(system, order):
    async def waiter(ctx: Context) -> None:
        async with ctx.condition("c") as condition:
            try:
                async with asyncio.timeout(1):
                    await condition.wait()
            except TimeoutError:
                order.append(((await row(system))[1], system.loop.time() - start))

    async def slow(ctx: Context) -> None:
        async with ctx.lock("c"):
            await ctx.sleep(5)

    start = system.loop.time()
    first = system.spawn(waiter)
    await system.turns()
    second = system.spawn(slow)
    await system.result(first)
    assert order == [([first.pid], 5)]
    await system.result(second)


async def test_a_notice_that_its_thread_cannot_use_goes_to_the_next(system, order):
    async def waiter(ctx: Context, n: int) -> None:
        async with ctx.condition("c") as condition:
            await condition.wait()
            order.append(n)

    async def notifier(ctx: Context) -> None:
        async with ctx.condition("c") as condition:
            await condition.notify()
            (thread,) = first.threads
            thread.cancel()

    system.program(waiter)
    first, second = system.spawn("waiter", 1), system.spawn("waiter", 2)
    await system.turns()
    await system.run(notifier)
    await system.result(second)
    assert order == [2]


async def test_waiting_for_a_notice_gives_up_a_reentrant_lock_altogether_and_gets_all_of_it_back(system):
    async def waiter(ctx: Context) -> str:
        lock = ctx.lock("c", reentrant=True)
        async with lock, lock:
            await ctx.condition("c").wait()
            return (await row(system))[0]

    async def notifier(ctx: Context) -> None:
        async with ctx.condition("c") as condition:
            await condition.notify()

    process = system.spawn(waiter)
    await system.turns()
    await system.run(notifier)
    assert await system.result(process) == "held 2 times"


async def test_a_killed_thread_that_cannot_get_its_lock_back_leaves_no_place_in_the_queue(system):
    async def waiter(ctx: Context) -> None:
        async with ctx.condition("a") as condition:
            await condition.wait()

    process = system.spawn(waiter)
    await system.turns()
    holder = system.spawn(hold, 10)
    await system.turns()
    await system.call(Kill(process.pid))  # abandons the thread after its grace period
    assert await row(system) == ("held", [holder.pid], [])
