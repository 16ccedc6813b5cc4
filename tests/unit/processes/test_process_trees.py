"""Process trees: a program can neither outgrow its limits nor outrun its end, whatever it spawns."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from ipc.errors import Killed, LimitExceeded
from ipc.syscalls import Kill, Limits, Ping, Spawn
from kernel.core import process_tree
from kernel.core.process import Process
from kernel.processes import threads
from llmosd.context import Context
from tests.support.agents import forever
from tests.support.system import System


async def line(ctx: Context, left: int) -> None:
    """A line of descendants."""
    if left:
        await ctx.spawn("line", {"left": left - 1})
    await ctx.sleep(1e9)


async def bomb(ctx: Context) -> None:
    while True:
        await ctx.spawn("bomb")
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def programs(system: System) -> None:
    for function in (forever, line, bomb):
        system.program(function)


async def spawn(system: System, program: str, args: dict[str, Any] | None = None, /, **options: Any) -> Process:
    return system.table.get(await system.call(Spawn(program, args or {}, **options)))


def agents(system: System) -> list[Process]:
    return [process for process in system.table.alive.values() if not process.is_client]


# ---- limits


async def test_a_program_has_as_many_living_processes_as_its_limit_and_detached_ones_count(system: System) -> None:
    async def parent(ctx: Context) -> str:
        child = await ctx.spawn("line", {"left": 1})
        await ctx.spawn("forever", detach=True)
        await asyncio.sleep(1)
        with pytest.raises(LimitExceeded, match=f"process {ctx.pid} and its descendants reached their limit of 4"):
            await ctx.spawn("forever", detach=True)
        await ctx.kill(child)
        await ctx.spawn("line", {"left": 1})
        return "done"

    system.program(parent)
    assert await system.result(await spawn(system, "parent", limits=Limits(processes=4))) == "done"


async def test_detached_processes_still_count_when_the_first_process_of_the_task_has_ended(system: System) -> None:
    async def child(ctx: Context) -> int:
        """Spawns until it may not. Returns how many it could spawn."""
        await ctx.sleep(1)
        for count in range(10):
            try:
                await ctx.spawn("forever")
            except LimitExceeded:
                return count
        return 10

    async def parent(ctx: Context) -> int:
        return await ctx.spawn("child", detach=True)

    for function in (child, parent):
        system.program(function)
    pid = await system.result(await spawn(system, "parent", limits=Limits(processes=3)))
    assert await system.result(pid) == 2


async def test_no_program_goes_deeper_than_its_generations(system: System) -> None:
    root = await spawn(system, "line", {"left": 10}, limits=Limits(depth=2))
    await system.turns()
    assert [process.generation for process in agents(system)] == [0, 1]  # the last one that could start has failed
    assert not root.dying


async def test_sixty_four_generations_are_the_most_unless_a_limit_says_otherwise(system: System) -> None:
    async def deepest(ctx: Context, left: int) -> int:
        if not left:
            return 0
        try:
            child = await ctx.spawn("deepest", {"left": left - 1})
        except LimitExceeded as error:
            return 0 if error.data["limit"] == "process depth" else -1000
        deeper: int = await ctx.wait(child)
        return deeper + 1

    system.program(deepest)
    args = {"left": 100}
    assert await system.result(await spawn(system, "deepest", args)) == process_tree.MOST_GENERATIONS
    assert await system.result(await spawn(system, "deepest", args, limits=Limits(depth=3))) == 3
    assert await system.result(await spawn(system, "deepest", args, limits=Limits(depth=90))) == 90
    assert not agents(system)


async def test_an_agent_starts_its_own_detached_successor_any_number_of_times(system: System) -> None:
    done = []

    async def hourly(ctx: Context, left: int) -> None:
        await ctx.sleep(3600)
        if left:
            await ctx.spawn("hourly", {"left": left - 1}, detach=True)
        else:
            done.append(ctx.pid)

    system.program(hourly)
    root = await spawn(system, "hourly", {"left": 200}, limits=Limits(processes=2, depth=0))
    tree = root.tree
    await asyncio.sleep(202 * 3600)
    assert len(done) == 1
    assert tree is not None
    assert (tree.most, tree.alive) == (2, 0)


async def test_a_detached_process_goes_no_deeper_than_the_one_that_spawned_it(system: System) -> None:
    async def parent(ctx: Context) -> list[bool]:
        child = await ctx.spawn("line", {"left": 1}, detach=True)
        limited = await ctx.spawn("line", {"left": 1}, detach=True, limits=Limits(depth=0))
        await ctx.sleep(1)
        return [system.table.find(pid).status is None for pid in (child, limited)]

    system.program(parent)
    for depth, alive in ((1, [True, False]), (0, [False, False])):
        root = await spawn(system, "parent", limits=Limits(depth=depth))
        assert await system.result(root) == alive
        assert root.tree is not None
        assert root.tree.deepest == depth  # whatever the limits of a detached process are


async def test_a_child_can_get_less_than_its_parent_and_never_more(system: System) -> None:
    async def parent(ctx: Context) -> list[Any]:
        outcomes: list[Any] = []
        for limits in (Limits(processes=2), Limits(processes=100), Limits(depth=1), Limits(depth=100)):
            child = await ctx.spawn("line", {"left": 9}, limits=limits)
            await ctx.sleep(1)
            outcomes.append(len(agents(system)) - 1)
            await ctx.kill(child)
        return outcomes

    async def line(ctx: Context, left: int) -> None:
        if left:
            with suppress(LimitExceeded):
                await ctx.spawn("line", {"left": left - 1})
        await ctx.sleep(1e9)

    for function in (parent, line):
        system.program(function)
    process = await spawn(system, "parent", limits=Limits(processes=6, depth=4))
    assert await system.result(process) == [2, 4, 2, 4]
    assert process.tree is not None
    assert process.tree.alive == 0


async def test_a_tree_counts_its_processes_down_to_none(system: System) -> None:
    root = await spawn(system, "line", {"left": 5})
    await system.turns()
    tree = root.tree
    assert tree is not None
    assert tree.alive == 6
    await system.call(Kill(root.pid))
    assert tree.alive == 0


# ---- the end


async def test_a_bomb_spawns_nothing_more_once_its_first_process_is_killed(system: System) -> None:
    root = await spawn(system, "bomb", limits=Limits(depth=10_000))
    while len(system.table.alive) < 500:
        await asyncio.sleep(0)
    killing = system.thread(system.kernel.control.kill(system.client, Kill(root.pid)))
    last = system.table.pids.last
    await killing
    assert system.table.pids.last == last
    assert not agents(system)


async def test_a_descendant_of_a_dying_process_is_killed_when_it_spawns(system: System) -> None:
    errors = []

    async def parent(ctx: Context) -> None:
        await ctx.spawn("child")
        await ctx.sleep(1e9)

    async def child(ctx: Context) -> None:
        await ctx.spawn("grandchild")
        await ctx.sleep(1e9)

    async def grandchild(ctx: Context) -> None:
        await ctx.sleep(1)
        system.kernel.process_exit.end(root, "killed", "a test")
        for detach in (False, True):
            try:
                await ctx.spawn("forever", detach=detach)
            except Killed as error:
                errors.append(error.message)

    for function in (parent, child, grandchild):
        system.program(function)
    root = await spawn(system, "parent")
    await asyncio.sleep(2)
    assert errors[0].endswith(f"may spawn nothing: its ancestor, process {root.pid}, ended")
    assert len(errors) == 2
    assert not agents(system)
    assert dict(system.kernel.process_exit.exits) == {"killed": 3}


async def test_others_get_their_turns_while_many_processes_are_killed(system: System) -> None:
    async def wide(ctx: Context) -> None:
        for _ in range(5000):
            await ctx.spawn("forever")
        await ctx.sleep(1e9)

    system.program(wide)
    root = await spawn(system, "wide")
    while len(system.table.alive) < 5002:
        await asyncio.sleep(0)
    killing = system.thread(system.kernel.control.kill(system.client, Kill(root.pid)))
    await asyncio.sleep(0)
    answered = 0
    while any(not process.dying for process in agents(system)):
        await asyncio.sleep(0)
        answered += (await system.call(Ping(b"x"))).payload == b"x"
    assert answered > 1
    await killing
    assert not agents(system)


async def test_threads_that_ignore_their_cancellation_are_abandoned_together(system: System) -> None:
    async def stubborn(ctx: Context) -> None:
        while True:
            try:
                await asyncio.sleep(1e9)
            except asyncio.CancelledError:
                continue

    async def parent(ctx: Context) -> None:
        for _ in range(200):
            await ctx.spawn("stubborn")
        await ctx.sleep(1e9)

    for function in (stubborn, parent):
        system.program(function)
    root = await spawn(system, "parent")
    await system.turns()
    assert len(agents(system)) == 201
    assert (await system.call(Kill(root.pid))).reason == "killed"
    assert not agents(system)


# ---- threads


async def test_the_threads_of_a_process_are_bounded(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MOST_THREADS", 5)

    async def agent(ctx: Context) -> str:
        started = [ctx.start_thread(ctx.sleep(1)) for _ in range(2)]
        started += [asyncio.create_task(asyncio.sleep(1)) for _ in range(2)]
        with pytest.raises(LimitExceeded, match="5 threads"):
            ctx.start_thread(ctx.sleep(1))
        with pytest.raises(LimitExceeded, match="5 threads"):
            started.append(asyncio.create_task(asyncio.sleep(1)))
        await asyncio.gather(*started)
        await ctx.start_thread(ctx.sleep(1))
        return "done"

    assert await system.run(agent) == "done"
