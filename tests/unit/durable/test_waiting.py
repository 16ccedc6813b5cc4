"""Waits of durable agents across runs of the daemon: sleeps and timeouts continue for the rest of their time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import apsw
import msgspec
import pytest

from ipc.errors import TimedOut
from ipc.syscalls import Resume, Send, Suspend
from kernel.durable import timeouts
from kernel.journal.settings import FILE
from llmosd.context import Context
from tests.support.durable_world import UNTIL, World, everywhere, nothing

pytestmark = pytest.mark.real_time


async def test_a_sleep_goes_on_for_the_rest_of_its_time_and_is_not_slept_twice(world: World) -> None:
    async def sleeper(ctx: Context) -> float:
        begun = await ctx.time()
        await ctx.sleep(3600.0)
        return begun

    program = world.agent(sleeper)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: life.calls.get("Sleep"))
        await life.rows("SELECT 1")
        folder = life.folder
    with apsw.Connection(str(folder / FILE)) as db:
        ((blob,),) = db.execute(f"SELECT outcome FROM calls WHERE {UNTIL}")
        _, until = msgspec.msgpack.decode(blob)
        assert 3500 < until - time.time() <= 3600
        later = msgspec.msgpack.encode([3, time.time() + 0.05])
        db.execute(f"UPDATE calls SET outcome = ? WHERE {UNTIL}", (later,))
    async with world.life(folder) as life:
        assert await life.result(task) <= time.time()


WAITS = {
    "receive": lambda ctx, child: ctx.receive(timeout=3600.0),
    "call": lambda ctx, child: ctx.call(child, "question", timeout=3600.0),
    "wait": lambda ctx, child: ctx.wait(child, timeout=3600.0),
    "watch": lambda ctx, child: ctx.shared("news").watch(0, timeout=3600.0),
    "event": lambda ctx, child: ctx.event("bell").wait(timeout=3600.0),
}


@pytest.mark.parametrize("way", WAITS)
async def test_a_timeout_goes_on_for_the_rest_of_its_time(
    world: World, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(timeouts, "PERSIST_AFTER", 0.01)

    async def idle(ctx: Context) -> None:
        await ctx.sleep(1e6)

    async def waiter(ctx: Context) -> list[float]:
        child = await ctx.spawn("idle")
        begun = await ctx.time()
        with pytest.raises(TimedOut):
            await WAITS[way](ctx, child)
        return [begun, await ctx.time()]

    world.agent(idle)
    program = world.agent(waiter)
    due = f"pid IN (SELECT pid FROM processes WHERE program = 'waiter') AND {UNTIL}"
    async with world.life() as life:
        task = await life.submit(program)
        while not await life.rows(f"SELECT 1 FROM calls WHERE {due}"):
            await asyncio.sleep(0.001)
        folder = life.folder
    with apsw.Connection(str(folder / FILE)) as db:
        ((blob,),) = db.execute(f"SELECT outcome FROM calls WHERE {due}")
        _, until = msgspec.msgpack.decode(blob)
        assert 3500 < until - time.time() <= 3600
        db.execute(f"UPDATE calls SET outcome = ? WHERE {due}", (msgspec.msgpack.encode([3, time.time() + 0.2]),))
    async with world.life(folder) as life:
        begun, ended = await life.result(task)
        assert ended - begun < 1000


async def test_what_came_before_the_end_of_a_timeout_is_received_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "PERSIST_AFTER", 0.01)

    async def waiter(ctx: Context) -> Any:
        return (await ctx.receive(timeout=0.1)).body

    program = world.agent(waiter)
    async with world.life() as life:
        task = await life.submit(program)
        while not await life.rows(f"SELECT 1 FROM calls WHERE {UNTIL}"):
            await asyncio.sleep(0.001)
        (process,) = (one for one in life.system.table.alive.values() if one.program == "waiter")
        await life.system.call(Suspend(process.pid))
        await life.system.call(Send(process.pid, "in time"))
        await life.rows("SELECT 1")
        await asyncio.sleep(0.1)
        folder = life.folder
    async with world.life(folder) as life:
        await life.until(lambda: any(one.program == "waiter" for one in life.system.table.alive.values()))
        await life.system.call(Resume(process.pid))
        assert await life.result(task) == "in time"


async def test_a_wait_that_is_over_soon_leaves_no_end_of_its_timeout(world: World) -> None:
    async def waiter(ctx: Context) -> Any:
        await ctx.send(ctx.pid, "hello")
        await ctx.receive(timeout=60.0)
        return (await ctx.receive(timeout=60.0)).body

    program = world.agent(waiter)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: life.calls.get("Receive") == 2)
        (process,) = (one for one in life.system.table.alive.values() if one.program == "waiter")
        await life.system.call(Send(process.pid, "again"))
        assert await life.result(task) == "again"
        assert not await life.rows(f"SELECT 1 FROM calls WHERE {UNTIL}")


async def test_a_timeout_that_cancelled_a_call_cancels_it_again(world: World) -> None:
    async def patient(ctx: Context) -> list[str]:
        seen = []
        for _ in range(2):
            try:
                async with asyncio.timeout(0.01):
                    await ctx.receive()
            except TimeoutError:
                seen.append(await ctx.generate("timed out", max_tokens=1))
        try:
            await ctx.receive(timeout=0.001)
        except TimedOut:
            seen.append("nothing")
        return seen

    await everywhere(world, world.agent(patient), nothing)
