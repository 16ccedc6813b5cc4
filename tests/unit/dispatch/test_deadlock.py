"""Deadlocks are found at the moment they close, and only those: a knot, not a mere cycle."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.errors import DeadlockDetected, TimedOut
from ipc.syscalls import Locks, Resume, Suspend
from llmosd.context import Context
from tests.support.paths import AGENTS
from tests.support.system import System


async def cycle(system: System, count: int) -> list[Any]:
    events = [asyncio.Event() for _ in range(count + 1)]

    async def link(ctx: Context, seat: int) -> Any:
        async with ctx.lock(str(seat)):
            await events[seat].wait()
            events[seat + 1].set()
            try:
                async with ctx.lock(str((seat + 1) % count)):
                    return "got it"
            except DeadlockDetected as knot:
                return knot.data

    system.program(link)
    processes = [system.spawn("link", seat) for seat in range(count)]
    await system.turns()
    events[0].set()
    return [await system.result(process) for process in processes]


async def test_a_lock_that_its_own_holder_asks_for_again_is_a_deadlock(system):
    async def twice(ctx: Context) -> str:
        async with ctx.lock("a"):
            try:
                await ctx.lock("a").acquire()
            except DeadlockDetected as knot:
                return knot.message
        return "no deadlock"

    text = await system.run(twice)
    assert "(twice) waits for lock a held by" in text
    assert await system.call(Locks()) == []


@pytest.mark.parametrize("count", [2, 5])
async def test_who_closes_a_cycle_of_locks_is_told_of_all_of_it(system, count):
    results = await cycle(system, count)
    assert results[:-1] == ["got it"] * (count - 1)
    error = results[-1]
    assert error["size"] == count
    assert [row["waits_for"].split(" held")[0] for row in error["knot"]] == [f"lock {seat}" for seat in range(count)]
    pids = [row["pid"] for row in error["knot"]]
    assert [row["ended_by"] for row in error["knot"]] == [[pid] for pid in pids[1:] + pids[:1]]


async def test_two_that_wait_for_each_others_end(system):
    pids: list[int] = []

    async def waits(ctx: Context, index: int) -> str:
        await ctx.sleep(index)
        try:
            await ctx.wait(pids[1 - index])
        except DeadlockDetected:
            return "found"
        return "ended"

    system.program(waits)
    first, second = system.spawn("waits", 0), system.spawn("waits", 1)
    pids += [first.pid, second.pid]
    assert (await system.result(first), await system.result(second)) == ("ended", "found")


async def test_a_child_waits_for_a_lock_of_the_parent_that_waits_for_its_end(system):
    async def child(ctx: Context) -> str:
        try:
            async with ctx.lock("a"):
                return "got it"
        except DeadlockDetected as knot:
            return f"{knot.data['size']}"

    async def parent(ctx: Context) -> Any:
        async with ctx.lock("a"):
            return await ctx.wait(await ctx.spawn("child"))

    system.program(child)
    # The parent parks first, so the child closes the knot.
    assert await system.run(parent) == "2"


async def test_a_cycle_with_another_live_holder_is_no_knot(system):
    """Two permits: one holder waits for the other's lock, but the second holder still gives its permit back."""

    async def live(ctx: Context) -> None:
        async with ctx.semaphore("s", 2):
            await ctx.sleep(10)

    async def one(ctx: Context) -> str:
        async with ctx.semaphore("s", 2):
            await ctx.sleep(1)
            async with ctx.lock("a"):
                return "got the lock"

    async def other(ctx: Context) -> str:
        async with ctx.lock("a"):
            await ctx.sleep(2)
            async with ctx.semaphore("s", 2):
                return "got the permit"

    system.spawn(live)
    first, second = system.spawn(one), system.spawn(other)
    assert await system.result(second) == "got the permit"
    assert await system.result(first) == "got the lock"


async def test_a_timeout_keeps_a_cycle_alive(system):
    async def patient(ctx: Context) -> str:
        async with ctx.lock("a"):
            await ctx.sleep(1)
            try:
                await ctx.lock("b").acquire(timeout=5)
            except TimedOut:
                return "timed out"
        return "got it"

    async def other(ctx: Context) -> str:
        async with ctx.lock("b"):
            await ctx.sleep(2)
            async with ctx.lock("a"):
                return "got it"

    first, second = system.spawn(patient), system.spawn(other)
    assert (await system.result(first), await system.result(second)) == ("timed out", "got it")


async def test_who_closes_a_cycle_with_a_timeout_set_waits_and_times_out(system):
    async def one(ctx: Context) -> str:
        async with ctx.lock("a"):
            await ctx.sleep(1)
            async with ctx.lock("b"):
                return "got it"

    async def closing(ctx: Context) -> str:
        async with ctx.lock("b"):
            await ctx.sleep(2)
            try:
                await ctx.lock("a").acquire(timeout=5)
            except TimedOut:
                return "timed out"
        return "got it"

    first, second = system.spawn(one), system.spawn(closing)
    assert (await system.result(second), await system.result(first)) == ("timed out", "got it")


async def test_a_suspended_process_is_live_and_its_knot_is_found_when_it_is_resumed(system):
    async def one(ctx: Context) -> str:
        async with ctx.lock("a"):
            await ctx.sleep(1)
            async with ctx.lock("b"):
                return "got it"

    async def other(ctx: Context) -> str:
        async with ctx.lock("b"):
            await ctx.sleep(3)
            try:
                async with ctx.lock("a"):
                    return "got it"
            except DeadlockDetected:
                return "found"

    first, second = system.spawn(one), system.spawn(other)
    await asyncio.sleep(2)
    await system.call(Suspend(first.pid))
    await asyncio.sleep(5)
    assert second.status is None
    await system.call(Resume(first.pid))
    # The younger process gets the error.
    assert (await system.result(second), await system.result(first)) == ("found", "got it")


async def test_the_end_of_the_last_live_thread_closes_a_knot(system):
    ended = asyncio.Event()

    async def target(ctx: Context) -> str:
        async def live() -> None:
            await ended.wait()

        task = asyncio.create_task(live())
        async with ctx.lock("a"):
            return f"got it {task}"

    system.program(target)

    async def holder(ctx: Context) -> Any:
        async with ctx.lock("a"):
            pid = await ctx.spawn("target", detach=True)
            return await ctx.wait(pid)

    process = system.spawn(holder)
    await asyncio.sleep(1)
    assert process.status is None
    ended.set()
    with pytest.raises(DeadlockDetected, match=r"waits for lock a held by .*; process .* waits for end of"):
        await system.result(process)


async def test_a_conditions_wait_never_loses_its_lock_to_a_deadlock(system):
    """Its return closes the knot but must not fail, so the other thread gets the error."""

    async def waits(ctx: Context) -> str:
        async with ctx.lock("b"), ctx.condition("a") as condition:
            with pytest.raises(TimedOut):
                await condition.wait(5)
            assert await ctx.condition("a").notify() == 0  # allowed only while it holds the lock
            return "held"

    async def other(ctx: Context) -> str:
        await ctx.sleep(1)
        async with ctx.lock("a"):
            try:
                async with ctx.lock("b"):
                    return "got it"
            except DeadlockDetected:
                return "found"

    first, second = system.spawn(waits), system.spawn(other)
    assert (await system.result(second), await system.result(first)) == ("found", "held")


async def test_the_philosophers_find_their_deadlock_and_all_eat(system):
    system.find_programs_in(AGENTS)
    await asyncio.to_thread(system.programs.load, "philosophers")
    report = await system.run("philosophers")
    assert report["eaten"] == [2] * 5
    assert report["deadlocks"]
    assert report["deadlocks"][0].count("waits for lock fork") == 5
    assert await system.call(Locks()) == []
