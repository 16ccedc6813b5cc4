"""Locks: they are fair, pass on when their holder ends in any way, and a cancelled wait leaves no trace."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from ipc.errors import NotHeld, TimedOut
from ipc.syscalls import Kill, Locks
from kernel.gate import CALLS_PER_TURN
from llmosd.context import Context
from tests.support.locks import hold, row

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_a_lock_goes_round_in_the_order_of_asking(system, order):
    async def worker(ctx: Context, n: int) -> None:
        async with ctx.lock("a"):
            order.append(n)
            await ctx.sleep(1)

    system.program(worker)
    # The last worker is the most urgent, so it runs and asks first.
    workers = [system.spawn("worker", n, priority=n) for n in (0, 1, 2, 3)]
    await asyncio.gather(*(asyncio.ensure_future(system.status(worker)) for worker in workers))
    assert sorted(order) == [0, 1, 2, 3]
    assert order == [3, 2, 1, 0]  # the order in which they ran and asked


async def test_a_releasing_thread_cannot_take_the_lock_again_before_those_that_wait(system, order):
    async def greedy(ctx: Context) -> None:
        for _ in range(3):
            async with ctx.lock("a"):
                order.append("greedy")
                await ctx.sleep(1)

    async def modest(ctx: Context) -> None:
        async with ctx.lock("a"):
            order.append("modest")

    processes = system.spawn(greedy), system.spawn(modest)
    for process in processes:
        await system.result(process)
    assert order == ["greedy", "modest", "greedy", "greedy"]


@pytest.mark.parametrize("how", ["kill", "crash", "return"])
async def test_a_lock_is_handed_on_when_its_holder_ends(system, how):
    async def holder(ctx: Context) -> None:
        await ctx.lock("a").acquire()
        if how == "kill":
            await ctx.sleep(100)
        await ctx.sleep(1)
        if how == "crash":
            raise ValueError("crash")

    async def waiter(ctx: Context) -> str:
        async with ctx.lock("a"):
            return "got it"

    first, second = system.spawn(holder), system.spawn(waiter)
    await system.turns()
    assert await row(system) == ("held", [first.pid], [second.pid])
    if how == "kill":
        await system.call(Kill(first.pid))
    assert await system.result(second) == "got it"


async def test_a_killed_holder_lets_go_in_order_and_not_before_its_finally_is_done(system, order):
    async def holder(ctx: Context) -> None:
        async with ctx.lock("a"):
            try:
                await ctx.sleep(100)
            finally:
                await asyncio.sleep(1)
                order.append("cleaned up")

    async def waiter(ctx: Context) -> None:
        async with ctx.lock("a"):
            order.append("got it")

    first, second = system.spawn(holder), system.spawn(waiter)
    await system.turns()
    await system.call(Kill(first.pid))
    await system.result(second)
    assert order == ["cleaned up", "got it"]
    assert isinstance(first.status.error, object)
    assert first.status.error.code == "Killed"


async def test_a_thread_holds_and_not_its_process(system):
    async def threads(ctx: Context) -> str:
        async def other() -> None:
            await ctx.lock("a").acquire()

        await asyncio.create_task(other())  # ends with the lock held
        await asyncio.sleep(0)
        async with ctx.lock("a"):
            with pytest.raises(NotHeld, match="another thread"):
                await asyncio.create_task(ctx.lock("a").release())
            return "got it"

    assert await system.run(threads) == "got it"


async def test_an_abandoned_thread_keeps_no_lock(system):
    async def stubborn(ctx: Context) -> None:
        await ctx.lock("a").acquire()
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)

    first = system.spawn(stubborn)
    await system.turns()
    await system.call(Kill(first.pid))
    await system.run(hold)


async def test_a_reentrant_lock_is_released_as_often_as_it_was_acquired(system):
    async def nested(ctx: Context) -> list[str]:
        states = []
        lock = ctx.lock("a", reentrant=True)
        async with lock:
            async with lock:
                states.append((await row(system))[0])
            states.append((await row(system))[0])
        with pytest.raises(NotHeld, match="held by nobody"):
            await lock.release()
        return states

    assert await system.run(nested) == ["held 2 times", "held"]


async def test_a_timeout_leaves_the_queue_and_zero_only_tries(system):
    async def impatient(ctx: Context, timeout: float) -> float:
        before = system.loop.time()
        with pytest.raises(TimedOut, match="waiting for lock a held by"):
            await ctx.lock("a").acquire(timeout)
        return float(system.loop.time() - before)

    system.program(impatient)
    holder = system.spawn(hold)
    await system.turns()
    assert await system.run("impatient", 0) == 0
    assert await system.run("impatient", 2) == 2
    assert await row(system) == ("held", [holder.pid], [])


async def test_a_cancelled_wait_leaves_the_queue_and_a_cancelled_grant_goes_on(system, order):
    async def waiter(ctx: Context, n: int) -> None:
        async with ctx.lock("a"):
            order.append(n)

    system.program(waiter)

    async def letting_go(ctx: Context) -> None:
        async with ctx.lock("a"):
            await ctx.sleep(5)
        # The next thread has been granted the lock and has not run since.
        assert (await row(system))[1] == [second.pid]
        (granted,) = second.threads
        granted.cancel()

    holder = system.spawn(letting_go)
    first, second, third = (system.spawn("waiter", n) for n in range(3))
    await system.turns()
    system.kernel.process_exit.end(first, "killed", "test")
    await system.turns()
    assert await row(system) == ("held", [holder.pid], [second.pid, third.pid])
    await system.result(holder)
    await system.result(third)
    assert order == [2]


async def test_a_burst_of_uncontended_calls_cannot_be_cancelled_between_grant_and_knowledge(system):
    """The gate yields to the loop after a burst of calls, but never between a grant and the return to its thread."""

    async def worker(ctx: Context) -> bool:
        lock = ctx.lock("a")
        await ctx.event("e").clear()  # so that a burst, which has an even number of calls, ends with an acquire
        try:
            while True:
                await lock.acquire()
                await lock.release()
        except asyncio.CancelledError:
            return bool(await system.call(Locks()))

    process = system.spawn(worker)
    for _ in range(3):
        await asyncio.sleep(0)
    (thread,) = process.threads
    thread.cancel()
    assert await system.result(process) is False


async def test_who_is_cancelled_on_the_way_out_of_a_lock_holds_it_no_more(system):
    """Also if the release is the last call of a burst, after which the gate yields to the loop."""

    async def worker(ctx: Context) -> tuple[int, bool]:
        for _ in range(CALLS_PER_TURN - 2):
            await ctx.event("e").clear()
        with contextlib.suppress(asyncio.CancelledError):
            async with ctx.lock("a"):
                asyncio.current_task().cancel()
        return ctx._process.calls, bool(await system.call(Locks()))

    assert await system.run(worker) == [CALLS_PER_TURN, False]
