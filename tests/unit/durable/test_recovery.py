"""Durable agents when the daemon starts: faults of their histories, and their state from the previous run."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import apsw
import pytest

from ipc.errors import HistoryDamaged, LlmosError, ReplayDiverged
from ipc.syscalls import Nice, Resume, Send, Submit, Suspend
from kernel.journal import schema, store
from kernel.journal.settings import FILE
from kernel.journal.suspects import RestartPlan
from llmosd.context import Context
from tests.support.durable_world import World

pytestmark = pytest.mark.real_time


async def test_a_replay_that_takes_another_way_ends_and_shows_both_sides(world: World) -> None:
    word = ["then"]

    async def wayward(ctx: Context) -> None:
        await ctx.time()
        with suppress(LlmosError):
            await ctx.generate(f"a word for {word[0]}", max_tokens=1)
        await ctx.receive()

    async def parent(ctx: Context) -> None:
        await ctx.wait(await ctx.spawn("wayward"))

    world.agent(wayward)
    world.agent(parent)
    async with world.life() as life:
        tasks = [await life.submit("wayward"), await life.submit("parent")]
        await life.until(lambda: life.calls.get("Receive", 0) == 2)
        await life.rows("SELECT 1")
        folder = life.folder
    word[0] = "now"
    world.agent(wayward)
    world.programs[-1].version = "another"
    async with world.life(folder) as life:
        for task in tasks:
            with pytest.raises(
                ReplayDiverged, match=r"a word for then.*a word for now.*its code has changed"
            ) as caught:
                await life.result(task)
            assert caught.value.data["number"] == 1
        assert await life.rows("SELECT * FROM calls") == []


async def test_a_row_that_cannot_be_read_ends_its_own_task_and_no_other(world: World) -> None:
    async def reader(ctx: Context) -> Any:
        await ctx.time()
        return (await ctx.receive()).body

    program = world.agent(reader)
    async with world.life() as life:
        tasks = [await life.submit(program) for _ in range(4)]
        pids = [process.pid for process in life.system.table.alive.values() if process.program == "reader"]
        await life.until(lambda: life.calls.get("Receive", 0) == 4)
        await life.rows("SELECT 1")
        folder = life.folder
    with apsw.Connection(str(folder / FILE)) as db:
        db.execute("UPDATE calls SET outcome = x'c1' WHERE pid = ?", (pids[0],))
        db.execute("UPDATE calls SET call = x'00' WHERE pid = ?", (pids[1],))
        db.execute("INSERT INTO messages (pid, message, envelope) VALUES (?, 1, x'93c1')", (pids[2],))
    async with world.life(folder) as life:
        for task in tasks[:3]:
            with pytest.raises(HistoryDamaged):
                await life.result(task)
        await life.system.call(Send(pids[3], "alive"))
        assert await life.result(tasks[3]) == "alive"


async def test_what_was_suspended_is_suspended_again_until_it_is_resumed(world: World) -> None:
    async def sleeper(ctx: Context) -> Any:
        return (await ctx.receive()).body

    program = world.agent(sleeper)
    async with world.life() as life:
        task = await life.submit(program)
        (pid,) = (process.pid for process in life.system.table.alive.values() if process.program == "sleeper")
        await life.system.call(Suspend(pid))
        await life.system.call(Send(pid, "morning"))
        folder = life.folder
    async with world.life(folder) as life:
        await life.system.call(Send(pid, "again"))
        process = life.system.table.alive[pid]
        await life.system.turns(50)
        assert (process.suspended, process.calls) == (True, 0)
        await life.system.call(Resume(pid))
        assert await life.result(task) == "morning"


async def test_the_priority_of_a_process_is_what_it_was_given_last(world: World) -> None:
    async def worker(ctx: Context) -> Any:
        await ctx.nice(ctx.pid, 7)
        ctx.start_thread(ctx.sleep(1e6))
        return (await ctx.receive()).body

    program = world.agent(worker)
    async with world.life() as life:
        task = await life.submit(program)
        other = await life.submit(program)
        await life.until(lambda: life.calls.get("Receive", 0) == 2)
        pid, pid_of_other = (one.pid for one in life.system.table.alive.values() if one.program == program)
        assert await life.system.call(Nice(pid, -3, relative=True)) == 4
        folder = life.folder
    async with world.life(folder) as life:
        alive = life.system.table.alive
        await life.until(lambda: {pid, pid_of_other} <= alive.keys() and len(alive[pid].threads) == 2)
        assert [alive[one].priority for one in (pid, pid_of_other)] == [4, 7]
        assert {thread.priority for thread in alive[pid].threads} == {4}
        for one in (pid, pid_of_other):
            await life.system.call(Send(one, "hello"))
        assert [await life.result(one) for one in (task, other)] == ["hello", "hello"]


@pytest.mark.parametrize("version", range(2, len(schema.MIGRATIONS)))
async def test_an_agent_in_a_journal_of_an_earlier_version_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    async def worker(ctx: Context) -> list[Any]:
        return [await ctx.time(), (await ctx.receive()).body]

    program = world.agent(worker)
    monkeypatch.setattr(store, "MIGRATIONS", schema.MIGRATIONS[:version])
    monkeypatch.setattr(store.Store, "begin_run", lambda *_: RestartPlan())  # it needs the columns of this version
    monkeypatch.setattr(store.Store, "out_of_attempts", lambda *_: [])
    monkeypatch.setattr(store.Store, "end_damaged", lambda *_: None)
    async with world.life() as life:
        task = await life.submit(program)
        while not (calls := await life.rows("SELECT pid FROM calls")):
            await asyncio.sleep(0.001)
        assert await life.rows("PRAGMA user_version") == [(version,)]
        folder = life.folder
    monkeypatch.undo()
    before = time.time()
    async with world.life(folder) as life:
        await life.system.call(Send(calls[0][0], "hello"))
        begun, body = await life.result(task)
        assert (begun < before, body) == (True, "hello")


async def test_any_program_is_run_as_a_durable_one_on_demand_and_no_other_keeps_calls(world: World) -> None:
    async def plain(ctx: Context) -> list[Any]:
        return [ctx.attempt, await ctx.time(), (await ctx.receive()).type]

    program = world.agent(plain, durable=False)
    async with world.life() as life:
        recorded, unrecorded = [
            (await life.system.call(Submit(program, detach=True, durable=durable))).id for durable in (True, False)
        ]
        await life.until(lambda: life.calls.get("Receive", 0) == 2)
        assert [row[0] for row in await life.rows("SELECT count(*) FROM calls")] == [1]
        folder = life.folder
        before = time.time()
    async with world.life(folder) as life:
        await life.until(lambda: life.calls.get("Receive", 0) == 2)
        for pid in [process.pid for process in life.system.table.alive.values() if process.program == "plain"]:
            await life.system.call(Send(pid, None, type="go"))
        results = [await life.result(task) for task in (recorded, unrecorded)]
        assert [result[0] for result in results] == [2, 2]
        assert results[0][1] < before < results[1][1]
