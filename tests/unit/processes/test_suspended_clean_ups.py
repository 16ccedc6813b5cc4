"""Killed and cancelled threads of suspended processes: their clean-ups run, and nothing else of the process does."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from ipc.errors import TimedOut
from ipc.syscalls import Kill, Resume, Suspend
from kernel.core.process import Process
from llmosd.context import Context
from tests.support.system import System


async def suspended(system: System, program: Any, thread: str | None = None) -> Process:
    process = system.spawn(program)
    await system.turns()
    await system.call(Suspend(process.pid, thread))
    return process


async def test_a_killed_thread_of_a_suspended_process_cleans_up_at_once(system: System) -> None:
    done: list[str] = []

    async def agent(ctx: Context) -> None:
        async def work() -> None:
            try:
                await ctx.sleep(1000)
            finally:
                await ctx.sleep(0.5)
                done.append("cleaned up")

        async def sibling() -> None:
            await ctx.sleep(0.1)
            done.append("sibling")

        tasks = [asyncio.create_task(work()), asyncio.create_task(sibling())]
        await asyncio.wait(tasks)

    process = await suspended(system, agent)
    before = system.loop.time()
    await system.call(Kill(process.pid, "0-1"))
    assert done == ["cleaned up"]
    assert system.loop.time() - before == pytest.approx(0.5)
    await asyncio.sleep(10)
    assert (done, process.suspended) == (["cleaned up"], True)
    await system.call(Resume(process.pid))
    await system.status(process)
    assert done == ["cleaned up", "sibling"]


async def test_a_clean_up_in_a_suspended_process_may_use_task_groups_timeouts_and_locks(system: System) -> None:
    done: list[Any] = []

    async def agent(ctx: Context) -> None:
        async def step(name: str) -> str:
            await asyncio.sleep(0)
            await ctx.sleep(0.1)
            return name

        async def work() -> None:
            try:
                await ctx.sleep(1000)
            finally:
                done.append(await asyncio.gather(step("a"), step("b")))
                async with asyncio.TaskGroup() as group:
                    group.create_task(step("c"))
                done.append(await asyncio.wait_for(step("d"), 1))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await asyncio.create_task(ctx.sleep(1000))
                async with ctx.lock("l"):
                    done.append("end")

        await asyncio.create_task(work())

    process = await suspended(system, agent)
    await system.call(Kill(process.pid, "0-1"))
    assert done == [["a", "b"], "d", "end"]
    assert process.held_back == [next(iter(process.threads))]  # which waits for the thread that was killed


async def test_the_task_group_of_a_killed_thread_ends_with_it_whatever_its_tasks_wait_for(system: System) -> None:
    done: list[str] = []

    async def agent(ctx: Context) -> None:
        async def child(name: str, ready: asyncio.Event) -> None:
            try:
                await ctx.sleep(1) if name == "ready" else await ready.wait()
            finally:
                await ctx.sleep(0.1)
                done.append(name)

        async def free() -> None:
            await ctx.sleep(1)
            done.append("free")

        async def work() -> None:
            free_task = asyncio.create_task(free())
            async with asyncio.TaskGroup() as group:
                for name in ("ready", "blocked"):
                    group.create_task(child(name, asyncio.Event()))
            await free_task

        await asyncio.wait([asyncio.create_task(work())])

    process = await suspended(system, agent)
    await asyncio.sleep(5)  # "ready" and "free" are ready now, and held back
    await system.call(Kill(process.pid, "0-1"))
    assert sorted(done) == ["blocked", "ready"]
    assert [thread.path for thread in process.held_back or ()] == ["0-1-1", "0"]
    await system.call(Resume(process.pid))
    await system.status(process)


async def test_what_a_clean_up_started_is_held_back_when_the_clean_up_is_over(system: System) -> None:
    ticks: list[int] = []

    async def agent(ctx: Context) -> None:
        async def ticker() -> None:
            while True:
                ticks.append(1)
                await ctx.sleep(0.2)

        async def work() -> None:
            try:
                await ctx.sleep(1000)
            finally:
                asyncio.create_task(ticker())  # noqa: RUF006
                await ctx.sleep(0.5)

        asyncio.create_task(work())  # noqa: RUF006
        await ctx.sleep(1000)

    process = await suspended(system, agent)
    await system.call(Kill(process.pid, "0-1"))
    assert len(ticks) == 3
    await asyncio.sleep(10)
    assert len(ticks) == 3
    await system.call(Resume(process.pid))
    await asyncio.sleep(1)
    assert len(ticks) > 3


async def test_a_clean_up_that_never_ends_is_over_after_the_grace_time_though_the_killer_went_away(
    system: System,
) -> None:
    async def agent(ctx: Context) -> None:
        async def work() -> None:
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await ctx.sleep(0.1)

        asyncio.create_task(work())  # noqa: RUF006
        await ctx.sleep(1000)

    for suspend in (True, False):
        process = system.spawn(agent)
        await system.turns()
        if suspend:
            await system.call(Suspend(process.pid))
        killer = system.thread(system.call(Kill(process.pid, "0-1")))
        await system.turns()
        killer.cancel()
        await asyncio.sleep(1.9)
        assert len(process.threads) == 2
        await asyncio.sleep(0.2)
        assert len(process.threads) == 1
        assert not system.kernel.dispatcher.clean_ups


async def test_a_clean_up_that_waits_for_a_suspended_thread_is_abandoned(system: System) -> None:
    async def agent(ctx: Context) -> None:
        lock = asyncio.Lock()

        async def holder() -> None:
            async with lock:
                await ctx.sleep(1)

        async def work() -> None:
            try:
                await ctx.sleep(1000)
            finally:
                async with lock:
                    pass

        await asyncio.wait([asyncio.create_task(holder()), asyncio.create_task(work())])

    process = await suspended(system, agent)
    before = system.loop.time()
    await system.call(Kill(process.pid, "0-2"))
    assert system.loop.time() - before == pytest.approx(2)
    await system.call(Resume(process.pid))
    assert (await system.status(process)).reason == "done"


async def test_two_kills_of_one_thread_of_a_suspended_process_are_both_answered(system: System) -> None:
    done: list[str] = []

    async def agent(ctx: Context) -> None:
        async def work() -> None:
            try:
                await ctx.sleep(1000)
            finally:
                await ctx.sleep(1)
                done.append("cleaned up")

        await asyncio.wait([asyncio.create_task(work())])

    process = await suspended(system, agent)
    first = system.thread(system.call(Kill(process.pid, "0-1")))
    await asyncio.sleep(0.5)
    await asyncio.gather(first, system.thread(system.call(Kill(process.pid, "0-1"))), return_exceptions=True)
    assert not system.kernel.dispatcher.clean_ups
    assert "0-1" not in {thread.path for thread in process.threads}


async def test_the_end_of_a_suspended_process_runs_all_its_clean_ups(system: System) -> None:
    done: list[str] = []

    async def agent(ctx: Context) -> None:
        async def work(name: str) -> None:
            try:
                await (ctx.sleep(1) if name == "ready" else ctx.receive())
            finally:
                await asyncio.gather(*(asyncio.sleep(0.1) for _ in range(3)))
                done.append(name)

        await asyncio.gather(*(work(name) for name in ("ready", "blocked", "suspended")))

    process = await suspended(system, agent)
    await system.call(Suspend(process.pid, "0-3"))
    await asyncio.sleep(5)
    await system.call(Kill(process.pid))
    assert sorted(done) == ["blocked", "ready", "suspended"]


async def test_a_suspended_thread_that_a_sibling_cancels_cleans_up_when_it_is_resumed(system: System) -> None:
    done: list[str] = []

    async def agent(ctx: Context) -> None:
        async def work() -> None:
            try:
                await ctx.sleep(1000)
            finally:
                await ctx.sleep(1)
                done.append("cleaned up")

        task = asyncio.create_task(work())
        await ctx.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        done.append("awaited")

    process = await suspended(system, agent, "0-1")
    await asyncio.sleep(100)
    assert done == []
    await system.call(Resume(process.pid, "0-1"))
    await system.status(process)
    assert done == ["cleaned up", "awaited"]


async def test_timeouts_that_strike_in_a_suspended_process_clean_up_when_it_is_resumed(system: System) -> None:
    done: list[str] = []

    async def agent(ctx: Context) -> None:
        async def limited(name: str) -> None:
            try:
                if name == "kernel":
                    await ctx.receive(timeout=1)
                elif name == "wait_for":
                    await asyncio.wait_for(ctx.sleep(1000), 1)
                else:
                    async with asyncio.timeout(1):
                        await ctx.sleep(1000)
            except (TimeoutError, TimedOut):
                await ctx.sleep(0.1)
                done.append(name)

        await asyncio.gather(*(limited(name) for name in ("kernel", "wait_for", "timeout")))

    process = await suspended(system, agent)
    await asyncio.sleep(100)
    assert done == []
    await system.call(Resume(process.pid))
    await system.status(process)
    assert sorted(done) == ["kernel", "timeout", "wait_for"]
