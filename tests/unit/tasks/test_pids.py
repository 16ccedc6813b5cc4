"""The pids of all processes continue across runs of the daemon, and none is ever given out twice."""

from __future__ import annotations

import asyncio

import pytest

from ipc.errors import AgentFailed
from ipc.syscalls import Spawn, Submit
from kernel.core.pids import LEAST_BLOCK, MARGIN
from llmosd.context import Context
from tests.support.agents import forever
from tests.support.durable_world import World
from tests.support.slow_disk import Disk
from tests.support.system import System

pytestmark = pytest.mark.real_time


async def test_after_an_orderly_stop_the_next_pid_follows_the_last_one(world: World) -> None:
    async with world.life(orderly=True) as life:
        folder = life.folder
        used = [life.system.spawn(forever).pid for _ in range(3)]
    async with world.life(folder) as life:
        assert life.system.spawn(forever).pid == used[-1] + 1


async def test_a_run_that_is_killed_leaves_no_pid_to_be_given_out_again(world: World) -> None:
    world.agent(forever, durable=False)
    world.agent(parent, durable=False)
    async with world.life() as life:
        folder = life.folder
        system = life.system
        await life.submit("parent", count=3 * LEAST_BLOCK)
        await life.until(lambda: len(system.table.alive) > 2 * LEAST_BLOCK)
        highest = max(system.table.alive)
    async with world.life(folder) as life:
        pid = life.system.spawn(forever).pid
        assert highest < pid < highest + 10 * LEAST_BLOCK


async def test_a_durable_process_returns_with_its_pid_and_new_ones_have_higher_pids(world: World) -> None:
    world.agent(forever)
    async with world.life() as life:
        folder = life.folder
        await life.submit("forever")
        (old,) = [process.pid for process in life.system.table.alive.values() if process.program == "forever"]
        highest = life.system.spawn("forever").pid
    async with world.life(folder) as life:
        await life.until(lambda: old in life.system.table.alive)
        assert life.system.spawn("forever").pid > highest


async def test_a_burst_of_spawns_waits_for_the_disk_and_goes_on(system: System, disk: Disk) -> None:
    system.program(forever)
    await system.until(lambda: system.kernel.opened)
    children = [system.call(Spawn("forever")) for _ in range(2 * LEAST_BLOCK)]
    started = asyncio.gather(*children)
    await system.turns(50)
    assert system.table.pids.last == LEAST_BLOCK - MARGIN
    disk.go.set()
    assert len(set(await started)) == 2 * LEAST_BLOCK


async def test_the_pids_of_many_submissions_are_on_disk_before_their_processes_start(
    system: System, disk: Disk
) -> None:
    system.program(forever)
    await system.until(lambda: system.kernel.opened)
    submissions = [asyncio.ensure_future(system.call(Submit("forever", detach=True))) for _ in range(2 * LEAST_BLOCK)]
    await system.turns(5)
    disk.go.set()
    pids = {(await submission).pid for submission in submissions}
    (reserved,) = next(
        iter(await system.journal.read(lambda store: list(store.db.execute("SELECT pid FROM counters"))))
    )
    assert max(pids) <= reserved
    assert len(pids) == 2 * LEAST_BLOCK


async def test_the_error_of_an_earlier_run_names_no_crash_report_because_that_is_gone(world: World) -> None:
    world.agent(failing, durable=False)
    async with world.life(orderly=True) as life:
        folder = life.folder
        task = await life.submit("failing")
        with pytest.raises(AgentFailed) as failed:
            await life.result(task)
        assert "crash" in failed.value.data
    async with world.life(folder) as life:
        with pytest.raises(AgentFailed, match="broken") as failed:
            await life.result(task)
        assert "crash" not in failed.value.data
        assert "broken" in failed.value.data["traceback"]


async def failing(ctx: Context) -> None:
    raise ValueError("broken")


async def parent(ctx: Context, count: int) -> None:
    for _ in range(count):
        await ctx.spawn("forever")
    await ctx.receive()
