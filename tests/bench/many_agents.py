"""A hundred thousand agents that wait for a message: the memory of each, and how fast they start, are listed and end.

The floor is the same number of bare tasks, each of which makes its mailbox when it first reads it. Run by `make bench`.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
from collections import deque
from time import perf_counter

import psutil
import uvloop
from inside import Inside
from rich.console import Console
from rich.table import Table

from ipc.syscalls import Kill, Ps, Spawn, Wait
from kernel.processes.garbage import THRESHOLDS

AGENTS = 100_000
ROUNDS = 3
IDLE = "idle"


def memory() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


class BareAgent:
    """The least that a task needs to receive messages."""

    __slots__ = ("mailbox", "task", "waiter")

    def __init__(self) -> None:
        self.mailbox: deque[object] | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None

    async def idle(self) -> None:
        if self.mailbox is None:
            self.mailbox = deque()
        while not self.mailbox:
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter


async def bare() -> tuple[float, float]:
    """Bytes and seconds per task."""
    loop = asyncio.get_running_loop()
    before, start = memory(), perf_counter()
    table = {}
    for number in range(AGENTS):
        agent = table[number] = BareAgent()
        agent.task = loop.create_task(agent.idle())
    await asyncio.sleep(0)
    seconds = perf_counter() - start
    size = memory() - before
    tasks = [agent.task for agent in table.values() if agent.task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return size / AGENTS, seconds / AGENTS


async def agents() -> dict[str, float]:
    async with Inside() as inside:
        await inside.run("pong", count=0)
        enter, client = inside.kernel.gate.enter, inside.client
        before, start = memory(), perf_counter()
        pids = [enter(client, Spawn(IDLE)) for _ in range(AGENTS)]
        while inside.kernel.table.get(pids[-1]).first_receiver is None:
            await asyncio.sleep(0)
        spawned = perf_counter() - start
        size = memory() - before
        start = perf_counter()
        rows = await inside.call(Ps(limit=1000))
        first_page = perf_counter() - start
        assert len(rows) == 1000
        start = perf_counter()
        for pid in pids:
            inside.kernel.control.kill(inside.client, Kill(pid)).close()
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
    gc.set_threshold(*THRESHOLDS)  # for both sides
    rounds = [(await bare(), await agents()) for _ in range(ROUNDS)]
    floor_size, floor_spawn = (
        statistics.median(values) for values in zip(*(floor for floor, _ in rounds), strict=True)
    )
    ours = {name: statistics.median(row[name] for _, row in rounds) for name in rounds[0][1]}
    ours["bytes"] = rounds[0][1]["bytes"]  # later rounds find memory that the first one left
    first, last = rounds[0][1], rounds[-1][1]
    table = Table(title=f"{AGENTS:,} idle agents, Python {sys.version.split()[0]}, medians of {ROUNDS} rounds")
    for column in ("", "bare tasks with a mailbox", "agents", "ratio"):
        table.add_column(column, justify="right")
    table.add_row("bytes each", f"{floor_size:,.0f}", f"{ours['bytes']:,.0f}", f"{ours['bytes'] / floor_size:.2f}")
    rates = 1 / floor_spawn, 1 / ours["spawn"]
    table.add_row("started a second", f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{rates[1] / rates[0]:.2f}")
    table.add_row("a page of 1,000 rows of `ps`, ms", "", f"{ours['page'] * 1e3:,.1f}", "")
    table.add_row("killed a second", "", f"{1 / ours['kill']:,.0f}", "")
    table.add_row("bytes each left when all are gone", "", f"{first['left']:,.0f}", "")
    table.add_row("the same after the last round", "", f"{last['left']:,.0f}", "")
    Console(width=100).print(table)


if __name__ == "__main__":
    uvloop.run(measure())
