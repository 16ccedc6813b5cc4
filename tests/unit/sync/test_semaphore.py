"""Semaphores: they give out a fixed number of permits, and permits of dead threads return."""

from __future__ import annotations

import pytest

from ipc.syscalls import Kill
from llmosd.context import Context
from tests.support.locks import row

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_a_semaphore_has_so_many_permits_and_gives_back_those_of_the_dead(system):
    async def worker(ctx: Context) -> None:
        semaphore = ctx.semaphore("s", 2)
        await semaphore.acquire()
        await ctx.sleep(10)

    system.program(worker)
    workers = [system.spawn("worker") for _ in range(3)]
    await system.turns()
    pids = [worker.pid for worker in workers]
    assert await row(system) == ("0 of 2 free", pids[:2], pids[2:])
    await system.call(Kill(pids[1]))
    await system.turns()
    assert await row(system) == ("0 of 2 free", [pids[0], pids[2]], [])
