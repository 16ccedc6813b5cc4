"""Cancelling a thread: in each state, in circles and long lines, and when it is abandoned."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from ipc.syscalls import Kill
from kernel.core.fiber import PARK
from llmosd.context import Context
from tests.support.system import System


async def test_cancel_before_the_first_step(system: System) -> None:
    ran = []

    async def body() -> None:
        ran.append(1)

    thread = system.thread(body())
    assert thread.cancel("why")
    with pytest.raises(asyncio.CancelledError):
        await thread
    assert ran == []
    assert thread.cancelled()
    assert not thread.cancel()


async def test_cancel_while_parked(system: System) -> None:
    async def body() -> None:
        await PARK

    thread = system.thread(body())
    await system.turns(3)
    thread.cancel()
    with pytest.raises(asyncio.CancelledError):
        await thread


async def test_cancel_while_ready_comes_instead_of_the_wake_up(system: System) -> None:
    seen = []

    async def body() -> None:
        try:
            await PARK
            seen.append("woken")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    thread = system.thread(body())
    await system.turns(3)
    thread.wake()
    thread.cancel()
    thread.wake()
    with pytest.raises(asyncio.CancelledError):
        await thread
    assert seen == ["cancelled"]


async def test_cancel_while_awaiting_a_future_cancels_the_future(system: System) -> None:
    future: asyncio.Future[None] = system.loop.create_future()

    async def body() -> None:
        await future

    thread = system.thread(body())
    await system.turns(3)
    thread.cancel()
    assert future.cancelled()
    with pytest.raises(asyncio.CancelledError):
        await thread


async def test_cancel_after_the_future_is_done_still_cancels(system: System) -> None:
    future: asyncio.Future[None] = system.loop.create_future()

    async def body() -> None:
        await future

    thread = system.thread(body())
    await system.turns(3)
    future.set_result(None)
    thread.cancel()
    with pytest.raises(asyncio.CancelledError):
        await thread


async def test_a_wake_up_without_a_wait_is_nothing(system: System) -> None:
    steps = []

    async def body() -> None:
        for n in range(3):
            steps.append(n)
            await PARK

    thread = system.thread(body())
    thread.wake()
    thread.wake()
    await system.turns(5)
    assert steps == [0]
    thread.wake()
    thread.wake()
    await system.turns(5)
    assert steps == [0, 1]
    thread.cancel()


async def test_an_abandoned_thread_is_never_stepped_again(system: System) -> None:
    steps = []

    async def body() -> None:
        while True:
            try:
                await PARK
            except asyncio.CancelledError:
                steps.append("ignored")

    thread = system.thread(body())
    await system.turns(3)
    thread.cancel()
    await system.turns(3)
    assert steps == ["ignored"]
    thread.cancel()
    thread.abandon()
    thread.abandon()
    await system.turns(3)
    assert steps == ["ignored"]
    assert thread.cancelled()
    thread.get_coro().close()


async def test_a_thread_cannot_await_itself(system: System) -> None:
    async def body() -> None:
        me: Any = asyncio.current_task()
        await me

    with pytest.raises(RuntimeError, match="cannot await itself"):
        await system.thread(body())


@pytest.mark.parametrize("directly", [True, False])
async def test_threads_that_await_each_other_in_a_circle_can_be_killed(system: System, directly: bool) -> None:
    ends = []

    async def agent(ctx: Context) -> None:
        threads: list[asyncio.Future[Any]] = []

        async def one(number: int) -> None:
            await ctx.sleep(1)
            try:
                after = threads[(number + 1) % 3]
                await (after if directly else asyncio.gather(after))
            finally:
                ends.append(number)

        threads += [ctx.start_thread(one(number)) for number in range(3)]
        await threads[0]

    process = system.spawn(agent)
    await asyncio.sleep(2)
    before = system.loop.time()
    await system.call(Kill(process.pid))
    assert (sorted(ends), system.loop.time() - before) == ([0, 1, 2], 0)


async def test_a_line_of_threads_longer_than_the_stack_can_be_killed(system: System) -> None:
    async def agent(ctx: Context) -> None:
        async def one(left: int) -> None:
            await (ctx.start_thread(one(left - 1)) if left else ctx.sleep(1e6))

        await one(2 * sys.getrecursionlimit())

    process = system.spawn(agent)
    await asyncio.sleep(1)
    assert len(process.threads) > sys.getrecursionlimit()
    assert (await system.call(Kill(process.pid))).reason == "killed"


@pytest.mark.parametrize("path", [None, "0-1"])
async def test_an_abandoned_thread_leaves_no_task_behind(system: System, path: str | None) -> None:
    ran = []

    async def left_behind() -> None:
        ran.append("ran")

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(1e6)
            except asyncio.CancelledError:
                pass
            except GeneratorExit:
                asyncio.create_task(left_behind())  # noqa: RUF006 - nothing must hold it
                raise

    async def agent(ctx: Context) -> None:
        await ctx.start_thread(stubborn())

    process = system.spawn(agent)
    await system.turns()
    await system.call(Kill(process.pid, path))
    await system.turns()
    assert ran == []
    assert len(system.client.threads) == 0


async def test_a_deferred_cancellation_is_thrown_at_the_next_wait_unless_it_is_taken_back(system: System) -> None:
    async def program(ctx: Context) -> list[str]:
        me: Any = asyncio.current_task()
        seen = []
        for taken_back in (True, False):
            me.cancel("now")
            try:
                await ctx.sleep(1)
            except asyncio.CancelledError as error:
                me.defer(error)
            if taken_back:
                assert me.uncancel() == 0
            try:
                await ctx.sleep(1)
                seen.append("slept")
            except asyncio.CancelledError as error:
                seen.append(error.args[0])
                me.uncancel()
        return seen

    assert await system.run(program) == ["slept", "now"]
