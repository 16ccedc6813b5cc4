"""Watching shared regions: no watcher misses a change, and none is left after it ends."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.errors import (
    RegionDeleted,
    TimedOut,
)
from ipc.syscalls import Regions, SharedDelete, SharedSet, SharedWatch
from llmosd.context import Context
from tests.support.system import System


async def test_a_watcher_sees_a_change_that_came_before_it_looked(system: System) -> None:
    async def program(ctx: Context) -> Any:
        region = ctx.shared("region")
        version = await region.set("old")
        await region.set("new")
        return (await region.watch(version, timeout=0)).value

    assert await system.run(program) == "new"


async def test_all_watchers_see_a_change_in_the_order_of_their_coming(system: System) -> None:
    order: list[int] = []

    async def watcher(ctx: Context, number: int) -> None:
        await ctx.shared("region").watch(0)
        order.append(number)

    name = system.program(watcher)
    agents = [system.spawn(name, number) for number in range(5)]
    await system.turns()
    assert agents[0].state() == ("blocked", "change of region")
    await system.call(SharedSet("region", 1))
    for agent in agents:
        await system.result(agent)
    assert order == [0, 1, 2, 3, 4]
    assert system.kernel.shared._watchers == {}


async def test_a_watch_ends_at_its_timeout_at_a_deletion_and_at_a_kill_and_leaves_nothing(system: System) -> None:
    version = await system.call(SharedSet("region", 1))

    async def watcher(ctx: Context, timeout: float | None) -> Any:
        return await ctx.shared("region").watch(version, timeout)

    name = system.program(watcher)
    late, killed, deleted = system.spawn(name, 5.0), system.spawn(name, None), system.spawn(name, 100.0)
    start = system.loop.time()
    with pytest.raises(TimedOut):
        await system.result(late)
    assert system.loop.time() - start == 5.0
    system.kernel.process_exit.end(killed, "killed", "by the test")
    await system.turns()
    assert [row.watchers for row in await system.call(Regions())] == [1]
    await system.call(SharedDelete("region"))
    with pytest.raises(RegionDeleted):
        await system.result(deleted)
    assert system.kernel.shared._watchers == {}


async def test_a_region_deleted_and_made_again_is_a_change(system: System) -> None:
    version = await system.call(SharedSet("region", 1))
    watch = system.thread(system.kernel.shared._watch(system.client, SharedWatch("region", version)))
    await system.turns()
    await system.call(SharedDelete("region"))
    await system.call(SharedSet("region", 2))
    assert (await watch).value == 2
