"""Killing a process: in any state, by any process, whatever the killed process does about it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from ipc.errors import DeadlineExceeded, Killed
from ipc.syscalls import Kill, Spawn, Suspend
from kernel.core.process import Process
from kernel.programs.program import Program
from llmosd.context import Context
from tests.support.agents import adder, listener
from tests.support.system import System


async def test_kill_before_the_first_step_runs_nothing(system: System) -> None:
    ran = []

    async def agent(ctx: Context) -> None:
        ran.append(1)

    process = system.spawn(agent)
    status = await system.call(Kill(process.pid))
    assert (status.reason, status.error.code) == ("killed", "Killed")
    assert ran == []


async def test_kill_of_a_blocked_process_runs_its_finally(system: System) -> None:
    steps = []

    async def agent(ctx: Context) -> None:
        try:
            await ctx.receive()
        finally:
            steps.append("clean")
            await asyncio.sleep(1)
            steps.append("slept")

    process = system.spawn(agent)
    await system.turns()
    status = await system.call(Kill(process.pid))
    assert status.reason == "killed"
    assert f"killed by process {system.client.pid}" in status.error.message
    assert steps == ["clean", "slept"]


async def test_a_dying_process_makes_no_more_calls_but_may_log(system: System) -> None:
    errors = []

    async def agent(ctx: Context) -> None:
        try:
            await ctx.receive()
        finally:
            ctx.log("last words")
            try:
                await ctx.sleep(1)
            except Killed as error:
                errors.append(error.message)

    process = system.spawn(agent)
    await system.turns()
    await system.call(Kill(process.pid))
    assert len(errors) == 1
    assert [line.event for line in process.log] == ["last words"]


async def test_kill_of_a_suspended_process_ends_it(system: System) -> None:
    process = system.spawn(listener)
    await system.turns()
    await system.call(Suspend(process.pid))
    assert (await system.call(Kill(process.pid))).reason == "killed"


async def test_kill_of_a_process_suspended_before_its_first_step_ends_it(system: System) -> None:
    process = system.spawn(listener)
    await system.call(Suspend(process.pid))
    await system.turns()
    assert (await system.call(Kill(process.pid))).reason == "killed"
    assert system.asyncio_tasks() == set()


async def test_kill_is_idempotent(system: System) -> None:
    async def slow_to_go(ctx: Context) -> None:
        try:
            await ctx.receive()
        finally:
            await asyncio.sleep(1)

    process = system.spawn(slow_to_go)
    await system.turns()
    kills = [system.thread(system.call(Kill(process.pid))) for _ in range(3)]
    statuses = [await kill for kill in kills]
    assert await system.call(Kill(process.pid)) == statuses[0] == statuses[1] == statuses[2]
    assert system.kernel.process_exit.exits == {"killed": 1}


async def test_a_process_that_kills_itself_is_killed(system: System) -> None:
    async def suicidal(ctx: Context) -> None:
        await ctx.kill(ctx.pid)

    status = await system.status(system.spawn(suicidal))
    assert status.reason == "killed"


async def test_a_value_returned_while_dying_does_not_undo_the_kill(system: System) -> None:
    async def stubborn(ctx: Context) -> str:
        try:
            await ctx.receive()
        except asyncio.CancelledError:
            return "survived"
        return ""

    process = system.spawn(stubborn)
    await system.turns()
    status = await system.call(Kill(process.pid))
    assert (status.reason, status.value) == ("killed", None)


async def test_a_thread_that_swallows_its_cancellation_is_abandoned_after_the_grace_time(system: System) -> None:
    async def immortal(ctx: Context) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)

    process = system.spawn(immortal)
    await system.turns()
    before = system.loop.time()
    status = await system.call(Kill(process.pid))
    assert status.reason == "killed"
    assert system.loop.time() - before == pytest.approx(2.0)
    assert system.asyncio_tasks() == set()
    assert list(system.table.alive.values()) == [system.client]


async def test_a_deadline_ends_the_process_and_says_so(system: System) -> None:
    process = system.spawn(listener, deadline=7.0)
    before = system.loop.time()
    with pytest.raises(DeadlineExceeded, match="the deadline of 7 s passed"):
        await system.result(process)
    assert system.loop.time() - before == pytest.approx(7.0)
    assert process.status.reason == "deadline"


@pytest.mark.real_time
@pytest.mark.parametrize("deadline", [0.0, 1e-9])
async def test_a_deadline_that_is_over_at_once_is_one_as_well(system: System, deadline: float) -> None:
    process = system.spawn(listener, deadline=deadline)
    with pytest.raises(DeadlineExceeded):
        await system.result(process)
    assert process.status.reason == "deadline"


def load_slowly(system: System, seconds: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a program that takes so long to load, and then waits for ever."""
    program = system.programs.by_name[system.program(listener)]

    async def load(parent: Process, name: str) -> Program:
        await asyncio.sleep(seconds)
        return program

    monkeypatch.setattr(system.kernel.lifecycle, "load", load)
    return "slow"


async def test_a_deadline_holds_while_the_program_is_loaded(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    name, before = load_slowly(system, 100, monkeypatch), system.loop.time()

    async def parent(ctx: Context) -> int:
        return await ctx.spawn(name, {}, deadline=3)

    with pytest.raises(DeadlineExceeded, match="the deadline of 3 s passed before the process could begin"):
        await system.call(Spawn(name, deadline=3))
    with pytest.raises(DeadlineExceeded, match="before the process could begin"):
        await system.run(parent)
    assert system.loop.time() - before == pytest.approx(6)
    assert list(system.table.alive) == [system.client.pid]


async def test_the_time_to_load_a_program_counts_against_the_deadline(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, before = load_slowly(system, 4, monkeypatch), system.loop.time()
    status = await system.status(await system.call(Spawn(name, deadline=6)))
    assert (status.reason, system.loop.time() - before) == ("deadline", pytest.approx(6))


async def test_a_process_that_is_killed_while_it_loads_the_program_of_a_child_ends_at_once(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, before = load_slowly(system, 100, monkeypatch), system.loop.time()

    async def parent(ctx: Context) -> int:
        return await ctx.spawn(name, {}, deadline=50)

    process = system.spawn(parent)
    await asyncio.sleep(1)
    await system.call(Kill(process.pid))
    assert (await system.status(process)).reason == "killed"
    assert system.loop.time() - before == pytest.approx(1)


async def test_the_deadline_of_a_process_that_ended_is_forgotten(system: System) -> None:
    process = system.spawn(adder, 1, deadline=5.0)
    assert await system.result(process) == 3
    assert process.timer is None
    await asyncio.sleep(10)
    assert process.status.reason == "done"


async def test_a_parent_killed_while_it_loads_a_program_spawns_nothing(system: System, tmp_path: Any) -> None:
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "late.py").write_text(
        "from llmosd import agent, Context\n@agent\nasync def late(ctx: Context) -> None:\n    await ctx.receive()\n"
    )

    async def parent(ctx: Context) -> None:
        await ctx.spawn("late")

    process = system.spawn(parent)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (await system.call(Kill(process.pid))).reason == "killed"
    await asyncio.sleep(5)
    assert len(system.table.alive) == 1
