"""Races of durable agents: the daemon dies between two steps, or another process acts first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import apsw
import msgspec
import pytest

from ipc.errors import AgentFailed, Killed, TimedOut
from ipc.syscalls import Resume, Send, Submit
from kernel.gate import CALLS_PER_TURN
from kernel.journal import histories
from kernel.journal.records import TaskRow
from kernel.journal.settings import FILE
from kernel.tasks import recovery
from kernel.tasks.submit import Tasks
from llmosd.context import Context
from tests.support.durable_world import UNTIL, Life, World, everywhere, nothing, waits

pytestmark = pytest.mark.real_time


async def test_a_history_that_cannot_be_read_now_is_read_later_and_holds_up_no_other_task(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "RETRY_SECONDS", 0.001)
    reads: list[int] = []
    bad: list[int] = []
    real = histories.load

    def load(store: Any, tasks: list[int]) -> Any:
        reads.extend(tasks)
        if bad and bad[0] in tasks:
            raise apsw.IOError("as planned")
        return real(store, tasks)

    async def waiter(ctx: Context) -> Any:
        return (await ctx.receive()).body

    program = world.agent(waiter)
    async with world.life() as life:
        tasks = [await life.submit(program) for _ in range(3)]
        pids = sorted(process.pid for process in life.system.table.alive.values() if process.program == "waiter")
        await life.until(waits(life, 3))
        folder = life.folder
    monkeypatch.setattr(histories, "load", load)
    bad.append(int(tasks[0], 16))
    async with world.life(folder) as life:
        await life.until(lambda: reads.count(bad[0]) > 3)
        for pid, task in zip(pids[1:], tasks[1:], strict=True):
            await life.system.call(Send(pid, "alive"))
            assert await life.result(task) == "alive"
        attached = asyncio.ensure_future(life.result(tasks[0]))
        bad.clear()
        await life.system.call(Send(pids[0], "late"))
        assert await attached == "late"


async def test_an_end_that_another_thread_has_heard_of_is_not_told_again(world: World) -> None:
    async def child(ctx: Context) -> None:
        """Ends immediately."""

    async def parent(ctx: Context) -> list[Any]:
        notified = asyncio.Event()

        async def listen() -> Any:
            down = (await ctx.receive(type="down")).body["pid"]
            notified.set()
            return down

        pid = await ctx.spawn("child")
        thread = ctx.start_thread(listen())
        for _ in range(2 * CALLS_PER_TURN):  # so that at a replay the other thread reaches its call first
            await ctx.time()
        await ctx.monitor(pid)
        await notified.wait()
        await ctx.receive(type="go")
        with pytest.raises(TimedOut):
            await ctx.receive(type="down", timeout=0.0)
        return [pid, await thread]

    world.agent(child)
    program = world.agent(parent)
    async with world.life() as life:
        task = await life.submit(program)
        (process,) = (one for one in life.system.table.alive.values() if one.program == "parent")
        await life.until(waits(life, 2))
        await life.rows("SELECT 1")
        folder = life.folder
    async with world.life(folder) as life:
        await life.until(waits(life, 1))
        await life.system.call(Send(process.pid, None, type="go"))
        pid, heard = await life.result(task)
        assert pid == heard


async def test_a_change_by_so_much_is_made_once(world: World) -> None:
    async def worker(ctx: Context) -> list[int]:
        await ctx.nice(ctx.pid, 3, relative=True)
        return [(await ctx.nice(ctx.pid, 2, relative=True)), await ctx.nice(ctx.pid, 0, relative=True)]

    assert await everywhere(world, world.agent(worker), nothing) == [5, 5]


async def test_who_suspended_itself_is_resumed_once(world: World) -> None:
    async def sleeper(ctx: Context) -> str:
        await ctx.suspend(ctx.pid)
        await ctx.time()
        return "awake"

    program = world.agent(sleeper)
    async with world.life() as life:
        task = await life.submit(program)
        (process,) = (one for one in life.system.table.alive.values() if one.program == "sleeper")
        await life.until(lambda: process.suspended)
        await life.rows("SELECT 1")
        folder = life.folder
    async with world.life(folder) as life:
        await life.until(lambda: life.system.table.alive.get(process.pid))
        assert life.system.table.alive[process.pid].suspended
        await life.system.call(Resume(process.pid))
        assert await life.result(task) == "awake"


async def test_a_sleep_that_was_over_is_not_slept_again_though_the_clock_went_back(world: World) -> None:
    async def sleeper(ctx: Context) -> Any:
        await ctx.sleep(0.001)
        await ctx.time()
        return (await ctx.receive()).body

    program = world.agent(sleeper)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(waits(life, 1))
        await life.rows("SELECT 1")
        (process,) = (one for one in life.system.table.alive.values() if one.program == program)
        folder = life.folder
    with apsw.Connection(str(folder / FILE)) as db:
        db.execute(f"UPDATE calls SET outcome = ? WHERE {UNTIL}", (msgspec.msgpack.encode([3, time.time() + 86400.0]),))
    async with world.life(folder) as life:
        await life.until(waits(life, 1))
        assert "Sleep" not in life.calls
        await life.system.call(Send(process.pid, "awake"))
        assert await life.result(task) == "awake"


async def test_a_child_has_the_priority_with_which_it_began(world: World) -> None:
    async def child(ctx: Context) -> Any:
        return (await ctx.receive()).body

    async def parent(ctx: Context) -> list[Any]:
        pids = [await ctx.spawn("child"), await ctx.spawn("helper"), await ctx.spawn("child", priority=-2)]
        await ctx.nice(ctx.pid, 7)
        pids.append(await ctx.spawn("child"))
        return [await ctx.wait(pid) for pid in pids]

    def ranks(life: Life) -> list[int]:
        return [one.priority for one in life.system.table.alive.values() if one.program in ("child", "helper")]

    world.agent(child)
    world.agent(child, "helper", durable=False)
    program = world.agent(parent)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(waits(life, 4))
        await life.rows("SELECT 1")
        assert ranks(life) == [0, 0, -2, 7]
        pids = [one.pid for one in life.system.table.alive.values() if one.program in ("child", "helper")]
        folder = life.folder
    async with world.life(folder) as life:
        await life.until(waits(life, 4))
        assert ranks(life) == [0, 0, -2, 7]
        for pid in pids:
            await life.system.call(Send(pid, "end"))
        assert await life.result(task) == ["end"] * 4


@pytest.mark.parametrize("way", ["monitor", "link"])
async def test_who_begins_again_later_is_still_watched(world: World, way: str) -> None:
    async def watcher(ctx: Context) -> Any:
        pid = (await ctx.receive(type="pid")).body
        if way == "link":
            await ctx.link(pid)
        else:
            await ctx.monitor(pid)
        return (await ctx.receive(type="down")).body["reason"]

    async def other(ctx: Context) -> None:
        await ctx.receive()
        raise ValueError("as planned")

    world.agent(watcher)
    world.agent(other)
    async with world.life() as life:
        watching, watched = await life.submit("watcher"), await life.submit("other")
        pids = {one.program: one.pid for one in life.system.table.alive.values()}
        await life.system.call(Send(pids["watcher"], pids["other"], type="pid"))
        await life.until(waits(life, 3))
        await life.rows("SELECT 1")
        folder = life.folder
    async with world.life(folder) as life:
        await life.until(waits(life, 2))
        await life.system.call(Send(pids["other"], None))
        with pytest.raises(AgentFailed, match="as planned"):
            await life.result(watched)
        if way == "link":
            with pytest.raises(Killed, match="linked"):
                await life.result(watching)
        else:
            assert await life.result(watching) == "failed"


KNOWN: dict[str, Callable[[Context, int], Any]] = {
    "link": lambda ctx, pid: ctx.link(pid),
    "monitor": lambda ctx, pid: ctx.monitor(pid),
    "send": lambda ctx, pid: ctx.send(pid, "hello"),
    "call": lambda ctx, pid: ctx.call(pid, "question"),
    "wait": lambda ctx, pid: ctx.wait(pid),
}


@pytest.mark.parametrize("way", KNOWN)
async def test_nobody_has_the_pid_in_the_next_life_of_whom_a_durable_agent_has_to_do_with(
    world: World, way: str
) -> None:
    async def other(ctx: Context) -> None:
        await ctx.sleep(1e6)

    async def agent(ctx: Context) -> None:
        await KNOWN[way](ctx, (await ctx.receive()).body)

    program = world.agent(other, durable=False)
    world.agent(agent)
    async with world.life() as life:
        await life.submit("agent")
        (process,) = (one for one in life.system.table.alive.values() if one.program == "agent")
        known = life.system.spawn(program)
        await life.system.call(Send(process.pid, known.pid))
        await life.until(lambda: life.calls.get(way.capitalize()))
        await life.rows("SELECT 1")
        folder = life.folder
    async with world.life(folder) as life:
        assert life.system.spawn(program).pid > known.pid


async def test_who_gives_up_on_a_task_that_runs_already_ends_it_for_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def waiter(ctx: Context) -> Any:
        return (await ctx.receive()).body

    program = world.agent(waiter, durable=False)
    real = Tasks._accepted

    def accepted(tasks: Tasks, *rest: Any) -> None:
        real(tasks, *rest)
        if isinstance(rest[-1], TaskRow):
            again.cancel()  # the answer has arrived, and was not read

    monkeypatch.setattr(Tasks, "_accepted", accepted)
    async with world.life() as life:
        gate, client = life.system.kernel.gate, life.system.client
        task = await life.system.call(Submit(program, key="once"))
        again = life.system.thread(gate.enter(client, Submit(program, key="once")))
        with pytest.raises(asyncio.CancelledError):
            await again
        await life.system.call(Send(task.pid, "still here"))
        assert await life.result(task.id) == "still here"
