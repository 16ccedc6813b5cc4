"""A hundred thousand agents that wait for a message: what each takes, and how fast they come, are listed and go.

Beside them the same number of bare tasks that wait for a future. Run by `make bench`.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from time import perf_counter

import psutil
import uvloop
from inside import Inside
from rich.console import Console
from rich.table import Table

from ipc.syscalls import Kill, Ps, Wait
from llmosd.daemon import GC_THRESHOLD

AGENTS = 100_000
IDLE = "idle"


def memory() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


async def bare() -> tuple[float, float]:
    """Bytes and seconds a task."""
    loop = asyncio.get_running_loop()

    async def idle() -> None:
        await loop.create_future()

    before, start = memory(), perf_counter()
    tasks = [loop.create_task(idle()) for _ in range(AGENTS)]
    await asyncio.sleep(0)
    seconds = perf_counter() - start
    size = memory() - before
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return size / AGENTS, seconds / AGENTS


async def agents() -> dict[str, float]:
    async with Inside() as inside:
        await inside.run("pong", count=0)
        before, start = memory(), perf_counter()
        pids = [await inside.spawn(IDLE) for _ in range(AGENTS)]
        while inside.kernel.table.get(pids[-1]).mailbox is None:
            await asyncio.sleep(0)
        spawned = perf_counter() - start
        size = memory() - before
        start = perf_counter()
        rows = await inside.call(Ps(limit=1000))
        first_page = perf_counter() - start
        assert len(rows) == 1000
        start = perf_counter()
        for pid in pids:
            inside.kernel.lifecycle.kill(inside.client, Kill(pid)).close()
        for pid in pids[-400:]:
            await inside.call(Wait(pid))
        killed = perf_counter() - start
        del pids, rows
        return {
            "bytes": size / AGENTS,
            "spawn": spawned / AGENTS,
            "page": first_page,
            "kill": killed / AGENTS,
            "left": (memory() - before) / AGENTS,
        }


async def measure() -> None:
    gc.set_threshold(*GC_THRESHOLD)  # for both
    floor_size, floor_spawn = await bare()
    ours = await agents()
    again = await agents()
    table = Table(title=f"{AGENTS:,} idle agents, Python {sys.version.split()[0]}")
    for column in ("", "bare tasks", "agents", "ratio"):
        table.add_column(column, justify="right")
    table.add_row("bytes each", f"{floor_size:,.0f}", f"{ours['bytes']:,.0f}", f"{ours['bytes'] / floor_size:.2f}")
    rates = 1 / floor_spawn, 1 / ours["spawn"]
    table.add_row("started a second", f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{rates[1] / rates[0]:.2f}")
    table.add_row("a page of 1,000 rows of `ps`, ms", "", f"{ours['page'] * 1e3:,.1f}", "")
    table.add_row("killed a second", "", f"{1 / ours['kill']:,.0f}", "")
    table.add_row("bytes each left when all are gone", "", f"{ours['left']:,.0f}", "")
    table.add_row("the same after a second round", "", f"{again['left']:,.0f}", "")
    Console(width=100).print(table)


if __name__ == "__main__":
    uvloop.run(measure())
