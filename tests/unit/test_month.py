"""A month of a daemon in virtual time: it restarts, its clock jumps, and names, models and tasks come and go.

What the kernel, the journal and the process hold is the same after each day. The long form runs 30 days.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ipc.syscalls import Kill, Submit
from kernel.core import process_table
from kernel.lib.machine import own_memory, release_free_memory
from kernel.policy import queue_entry
from llmosd.context import Context
from tests.support import containers
from tests.support.durable_world import Life, World
from tests.support.many_models import GB, simulated
from tests.support.system import System

DAY = 86_400.0
CHUNK = 1800.0  # seconds of virtual time between two looks at the journal
EPOCH = 1_800_000_000.0
JUMPS = (-3600.0, -5.0, 5.0, 3600.0, 2 * DAY, -2 * DAY)
DAYS_OF_A_RUN = 3  # of the daemon
FILES = 5  # the journal, its log and index, and two locks
SPARE = 24 * 1024 * 1024  # bytes by which the memory of this process may vary


class Wall:
    """The clocks of the machine: they follow the virtual time, and the time of day jumps."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.jumped = 0.0

    def of_day(self) -> float:
        return EPOCH + self.loop.time() + self.jumped

    def steady(self, which: int = 0) -> float:
        return self.loop.time()


@pytest.fixture
async def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall = Wall(asyncio.get_running_loop())
    monkeypatch.setattr(time, "time", wall.of_day)
    monkeypatch.setattr(time, "monotonic", wall.steady)
    monkeypatch.setattr(time, "clock_gettime", wall.steady)
    return wall


@pytest.fixture(autouse=True)
def remember_little(monkeypatch: pytest.MonkeyPatch, trial: Any) -> None:
    """Make the tables that remember what has ended so small that they are full after two days."""
    monkeypatch.setattr(process_table, "REMEMBERED", trial(short=16, long=64))
    monkeypatch.setattr(queue_entry, "SLACK", 0)


# ---- what agents do in a month


async def plain(ctx: Context, day: int, number: int) -> int:
    await ctx.sleep(number)
    return number


async def failing(ctx: Context, day: int, number: int) -> None:
    raise ValueError(f"failure {day} {number}")


async def family(ctx: Context, day: int, number: int) -> list[Any]:
    children = [await ctx.spawn("plain", {"day": day, "number": n}, name=f"child {day} {number} {n}") for n in range(3)]
    await ctx.monitor(children[0])
    return [await ctx.wait(child) for child in children]


async def named(ctx: Context, day: int, number: int) -> Any:
    """Names, topics, locks and regions that nobody uses again."""
    name = f"{day} {number}"
    await ctx.register(name)
    await ctx.subscribe(f"topic.{day}.{number}.*")
    await ctx.publish(f"topic.{day}.{number}.news", name)
    async with ctx.lock(f"lock {name}"):
        await ctx.shared(f"region {name}", ephemeral=True).set(name)
    async with ctx.semaphore(f"semaphore {name}", 2):
        await ctx.event(f"event {name}").set()
        await ctx.event(f"event {name}").clear()
    await ctx.memory.set("key", "x" * 1000)
    await ctx.unregister(name)
    return (await ctx.receive(timeout=5)).body


async def generating(ctx: Context, day: int, number: int) -> str:
    return await ctx.generate("one two three", model=MODELS[number % len(MODELS)], max_tokens=3, seed=number)


async def late(ctx: Context, day: int, number: int) -> None:
    await ctx.sleep(10 * DAY)


async def overnight(ctx: Context, day: int, number: int) -> list[int]:
    """Durable: begun in one day, and often in one run of the daemon, and ended in another."""
    steps = []
    for step in range(3):
        await ctx.memory.set("step", step)
        await ctx.sleep(3600)
        steps.append(await ctx.memory.get("step"))
    return steps


async def durable_family(ctx: Context, day: int, number: int) -> list[Any]:
    children = [await ctx.spawn("overnight", {"day": day, "number": n}) for n in range(2)]
    await ctx.shared(f"durable {day} {number}", durable=True).set(number)
    result = [await ctx.wait(child) for child in children]
    await ctx.shared(f"durable {day} {number}", durable=True).delete()
    return result


async def client(ctx: Context, day: int, number: int) -> Any:
    server = await ctx.spawn("server", {})
    answers = [await ctx.call(server, n, 10) for n in range(3)]
    await ctx.send(server, None)
    await ctx.wait(server)
    return answers


async def server(ctx: Context) -> None:
    while (message := await ctx.receive()).body is not None:
        await ctx.reply(message, message.body)


MODELS = ("one", "two", "three")
STEPS = [0, 1, 2]
EXPECTED: dict[str, Any] = {
    "plain": lambda number: number,
    "family": lambda number: [0, 1, 2],
    "overnight": lambda number: STEPS,
    "durable_family": lambda number: [STEPS, STEPS],
    "client": lambda number: [0, 1, 2],
}
KINDS = (plain, failing, family, named, generating, late, overnight, durable_family, client)


class Month:
    """Days in the life of one daemon and its successors, on the journal in one folder."""

    def __init__(self, world: World, wall: Wall, seed: int, tasks: int) -> None:
        self.world = world
        self.wall = wall
        self.chance = random.Random(seed)
        self.tasks = tasks
        self.open: dict[str, tuple[str, int]] = {}  # tasks that may go on in the next run: program and number
        self.day = 0
        self.sizes: list[Counter[str]] = []  # of the kernel, after each day of the present run

    async def run(self, days: int) -> None:
        """One run of the daemon."""
        self.sizes = []
        folder = self.world.folder / "state"
        run = self.world.life(folder, orderly=self.chance.random() < 0.5)
        life = await self._wait(run.__aenter__())
        try:
            life.system.machine.sizes.update(dict.fromkeys(MODELS, GB))
            for _ in range(days):
                await self._one_day(life)
        finally:
            await self._wait(run.__aexit__(None, None, None))

    async def _one_day(self, life: Life) -> None:
        self.day += 1
        system, begun = life.system, dict(self.open)
        kinds = [KINDS[number % len(KINDS)].__name__ for number in range(self.tasks)]
        tasks = await self._submit(life, kinds)
        for number, (program, task) in enumerate(zip(kinds, tasks, strict=True)):
            if program == "late" and number % 2:
                await self._wait(self._kill(system, task))
            elif program in EXPECTED:
                begun[task] = program, number
        jump = self.chance.choice(JUMPS)
        self.wall.jumped += jump
        await self._pass(life, DAY / 2)
        for task, (program, number) in begun.items():
            assert await self._wait(life.result(task)) == EXPECTED[program](number), (program, number)
        # These go on in the night, and in the next run if the daemon ends now.
        night = await self._submit(life, ["overnight"] * 3)
        self.open = {task: ("overnight", number) for number, task in enumerate(night)}
        await self._pass(life, 600)
        system.launcher.drivers[:] = system.launcher.alive
        for driver in system.launcher.alive:
            driver.sent.clear()
            driver.said.clear()
        self.sizes.append(containers.count(system.kernel))

    async def _submit(self, life: Life, programs: list[str]) -> list[str]:
        calls = [
            Submit(name, {"day": self.day, "number": number}, detach=True, deadline=DAY / 4 if name == "late" else None)
            for number, name in enumerate(programs)
        ]
        submitted = [asyncio.ensure_future(life.system.call(call)) for call in calls]
        return [(await self._wait(each)).id for each in submitted]

    async def _kill(self, system: System, task: str) -> None:
        row = next(row for row in await system.history() if row.id == task)
        await system.call(Kill(row.pid))

    async def _pass(self, life: Life, seconds: float) -> None:
        """Let virtual time pass, and give the journal's thread the time to do what is to be done meanwhile."""
        end = self.wall.loop.time() + seconds
        while self.wall.loop.time() < end:
            await asyncio.sleep(CHUNK)
            life.system.look()
            await self._wait(life.system.tasks.flush())

    async def _wait(self, coro: Any) -> Any:
        """Wait for the journal's thread, while little virtual time passes."""
        task = asyncio.ensure_future(coro)
        while not task.done():
            await asyncio.sleep(0.001)
        return task.result()


def held(folder: Path) -> dict[str, int]:
    """The resources of this process while no kernel runs, and the size of the journal."""
    gc.collect()
    release_free_memory()
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": sum(thread.name != "llmosd look" for thread in threading.enumerate()),  # those are one per loader
        "memory": own_memory(),
        "files": len(files),
        "journal": sum(path.stat().st_size for path in files),
    }


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_after_a_month_the_daemon_holds_no_more_than_after_its_first_days(
    tmp_path: Path, wall: Wall, trial: Any
) -> None:
    runs, tasks = trial(short=3, long=10), trial(short=18, long=90)
    world = World(tmp_path)
    world.models = {name: simulated(keep_alive=600.0, context=8192 - n) for n, name in enumerate(MODELS)}
    for function in (*KINDS, server):
        world.agent(function, durable=function in (overnight, durable_family))
    month, after, grown = Month(world, wall, 1, tasks), [], []
    for _ in range(runs):
        await month.run(DAYS_OF_A_RUN)
        grown.append(containers.grown(month.sizes[-2], month.sizes[-1]))
        after.append(held(tmp_path))
    print(f"{month.day} days: {after}")
    # Which of the last processes are remembered, and what they hold, varies. What leaks grows in every run.
    assert set.intersection(*map(set, grown)) == set(), grown
    first, last = after[0], after[-1]
    for name in ("descriptors", "threads"):
        assert last[name] <= first[name], name
    assert last["files"] <= FILES
    assert last["memory"] < first["memory"] + SPARE
    assert last["journal"] < 2 * first["journal"]
