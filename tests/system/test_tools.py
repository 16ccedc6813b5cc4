"""Tools and shared regions of a real daemon."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from ipc.errors import RegionDeleted, TimedOut, VersionConflict
from ipc.syscalls import SharedGet, Tools, UseTool
from llmosd import AsyncClient
from tests.support.daemon import RunningDaemon

AGENTS = """
import time
from llmosd import Context, agent, tool

@tool
def hang() -> None:
    "Never returns."
    while True:
        time.sleep(3600)

@tool
def double(number: int) -> int:
    return 2 * number

@agent
async def caller(ctx: Context, name: str) -> None:
    await ctx.tool(name)
"""


def test_a_tool_that_hangs_does_not_hold_up_the_daemons_stop(
    launch: Callable[..., RunningDaemon], eventually: Callable[..., None]
) -> None:
    daemon = launch()
    with daemon.client() as llmos:
        assert llmos.request(UseTool("double", {"number": 4})) == 8
        task = llmos.submit("caller", {"name": "hang"})
        eventually(
            lambda: any(row.running for row in llmos.request(Tools()) if row.name == "hang"), "the tool is at work"
        )
        task.cancel()
        (row,) = [row for row in llmos.request(Tools()) if row.name == "hang"]
        assert (row.running, row.abandoned, row.summary) == (1, 1, "Never returns.")
        assert daemon.kill(signal.SIGTERM) == 0


def test_clients_share_regions_with_versions(daemon: RunningDaemon) -> None:
    async def use() -> None:
        async with AsyncClient(daemon.socket) as one, AsyncClient(daemon.socket) as other:
            mine, theirs = one.shared("plan"), other.shared("plan")
            watch = asyncio.create_task(theirs.watch(0, timeout=60))
            first = await mine.compare_and_set({"step": 1}, 0)
            assert await watch == ({"step": 1}, first)
            changed = await theirs.update(lambda plan: plan | {"step": 2})
            with pytest.raises(VersionConflict) as error:
                await mine.compare_and_set({}, first)
            assert error.value.data["found"] == changed.version
            with pytest.raises(TimedOut):
                await mine.watch(changed.version, timeout=0)
            watch = asyncio.create_task(mine.watch(changed.version))
            assert await theirs.get() == changed
            await theirs.delete()
            with pytest.raises(RegionDeleted):
                await watch

    asyncio.run(use())
    with daemon.client() as llmos, pytest.raises(Exception, match="no shared region"):
        llmos.request(SharedGet("plan"))
