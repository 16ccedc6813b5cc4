"""Processes: they start, wait, are suspended and end with their parents, and leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from ipc.codec import reveal
from ipc.errors import InvalidCall, TimedOut, UnknownProcess, UnknownProgram
from ipc.messages import Failed, Result
from ipc.syscalls import Kill, Limits, Resume, Spawn, Suspend, Wait
from kernel.core.process import Thread
from kernel.core.process_table import REMEMBERED
from llmosd.context import Context
from tests.support.agents import adder, listener
from tests.support.system import System

# ---- start and end


async def test_a_process_answers_its_value_and_leaves_nothing_behind(system: System) -> None:
    assert await system.run(adder, 3, b=4) == 7
    assert list(system.table.alive.values()) == [system.client]
    assert not system.client.children
    assert not system.client.threads
    assert system.asyncio_tasks() == set()


async def test_status_says_how_it_ended_and_what_it_used(system: System) -> None:
    async def worker(ctx: Context) -> int:
        await ctx.sleep(3)
        return 5

    before = system.loop.time()
    status = await system.status(system.spawn(worker))
    assert (status.reason, status.error, status.program) == ("done", None, "worker")
    assert reveal(status.value) == 5
    assert status.usage.calls == 1
    assert system.loop.time() - before == pytest.approx(3)


async def test_waiting_for_a_process_that_has_ended_answers_at_once(system: System) -> None:
    process = system.spawn(adder, 1)
    first = await system.status(process)
    assert await system.status(process) == first


async def test_many_waiters_are_all_answered(system: System) -> None:
    process = system.spawn(listener)
    waiters = [system.thread(system.kernel.gate.enter(system.client, Wait(process.pid))) for _ in range(5)]
    await system.turns()
    await system.call(Kill(process.pid))
    assert {(await waiter).reason for waiter in waiters} == {"killed"}
    assert not process.watchers


async def test_wait_times_out_and_the_process_goes_on(system: System) -> None:
    process = system.spawn(listener)
    with pytest.raises(TimedOut) as caught:
        await system.call(Wait(process.pid, 5.0))
    assert caught.value.data == {"pid": process.pid}
    assert not process.ended
    assert not process.watchers


async def test_a_process_cannot_wait_for_itself(system: System) -> None:
    async def narcissus(ctx: Context) -> None:
        await ctx.wait(ctx.pid)

    with pytest.raises(InvalidCall, match="its own end"):
        await system.run(narcissus)


async def test_unknown_pids_tell_ended_from_never(system: System) -> None:
    with pytest.raises(UnknownProcess, match="never existed"):
        await system.call(Wait(999))
    pids = []
    for _ in range(REMEMBERED + 1):
        process = system.spawn("adder" if pids else adder, 1)
        pids.append(process.pid)
        await system.status(process)
    with pytest.raises(UnknownProcess, match="has ended"):
        await system.call(Wait(pids[0]))
    assert (await system.call(Wait(pids[1]))).reason == "done"


async def test_an_unknown_program_is_named_with_the_known_ones(system: System) -> None:
    system.program(adder)
    with pytest.raises(UnknownProgram, match="adder"):
        await system.call(Spawn("addr"))


# ---- children


async def test_a_child_dies_with_its_parent_whatever_way_it_ends(system: System) -> None:
    async def returning(ctx: Context) -> int:
        return await ctx.spawn("listener")

    async def raising(ctx: Context) -> None:
        await ctx.spawn("listener")
        raise RuntimeError("x")

    async def killed(ctx: Context) -> None:
        await ctx.spawn("listener")
        await ctx.receive()

    system.program(listener)
    for parent in (returning, raising, killed):
        process = system.spawn(parent)
        await system.turns()
        if parent is killed:
            await system.call(Kill(process.pid))
        await system.status(process)
        child = system.table.find(process.pid + 1)
        assert child.status.reason == "killed"
        assert f"its parent, process {process.pid}, ended" in child.status.error.message
    assert len(system.table.alive) == 1


async def test_grandchildren_end_before_the_parent_is_gone(system: System) -> None:
    order = []

    async def nest(ctx: Context, depth: int) -> None:
        try:
            if depth:
                await ctx.spawn("nest", {"depth": depth - 1})
            await ctx.receive()
        finally:
            await asyncio.sleep(0.1)
            order.append(depth)

    process = system.spawn(nest, depth=3)
    await system.turns(20)
    assert len(system.table.alive) == 5
    await system.call(Kill(process.pid))
    assert sorted(order) == [0, 1, 2, 3]
    assert len(system.table.alive) == 1
    assert system.asyncio_tasks() == set()


async def test_a_detached_child_outlives_its_parent(system: System) -> None:
    async def parent(ctx: Context) -> int:
        return await ctx.spawn("listener", detach=True)

    system.program(listener)
    child = system.table.get(await system.run(parent))
    assert child.parent is None
    assert not child.ended
    await system.call(Kill(child.pid))


async def test_one_failing_child_does_not_abort_its_siblings(system: System) -> None:
    async def child(ctx: Context, fail: bool) -> str:
        await ctx.sleep(1)
        if fail:
            raise ValueError
        return "fine"

    async def parent(ctx: Context) -> list[Any]:
        pids = [await ctx.spawn("child", {"fail": fail}) for fail in (True, False)]
        return [type(r).__name__ if isinstance(r, Exception) else r for r in await gather(ctx, pids)]

    async def gather(ctx: Context, pids: list[int]) -> list[Any]:
        return await asyncio.gather(*(ctx.wait(pid) for pid in pids), return_exceptions=True)

    system.program(child)
    assert await system.run(parent) == ["AgentFailed", "fine"]


async def test_a_child_inherits_priority_and_owner(system: System) -> None:
    async def parent(ctx: Context) -> None:
        await ctx.spawn("listener")
        await ctx.spawn("listener", priority=-3, owner="other")
        await ctx.receive()

    system.program(listener)
    process = system.spawn(parent, priority=4)
    await system.turns()
    first, second = (system.table.get(process.pid + n) for n in (1, 2))
    assert (first.priority, first.owner) == (4, "test")
    assert (second.priority, second.owner) == (-3, "other")


async def test_a_client_that_disconnects_takes_its_tasks_along(system: System) -> None:
    client = system.kernel.lifecycle.open_client("passing")
    process = system.spawn(listener, parent=client)
    await system.turns()
    system.kernel.process_exit.end(client, "killed", "the client disconnected")
    assert (await system.status(process)).reason == "killed"
    await system.turns()
    with pytest.raises(UnknownProcess):
        system.table.find(client.pid)


# ---- suspend


async def test_a_suspended_process_makes_no_progress(system: System) -> None:
    ticks = []

    async def ticker(ctx: Context) -> None:
        while True:
            await ctx.sleep(1)
            ticks.append(system.loop.time())

    process = system.spawn(ticker)
    await asyncio.sleep(2.5)
    await system.call(Suspend(process.pid))
    assert len(ticks) == 2
    await asyncio.sleep(10)
    assert len(ticks) == 2
    assert process.state()[0] == "suspended"
    await system.call(Resume(process.pid))
    await asyncio.sleep(2.5)
    assert len(ticks) == 5  # the tick that was due, and two more


async def test_suspending_twice_needs_one_resume(system: System) -> None:
    process = system.spawn(adder, 1)
    await system.call(Suspend(process.pid))
    await system.call(Suspend(process.pid))
    await system.turns()
    assert not process.ended
    await system.call(Resume(process.pid))
    assert await system.result(process) == 3


async def test_a_deadline_holds_for_a_suspended_process(system: System) -> None:
    process = system.spawn(listener, deadline=3.0)
    await system.call(Suspend(process.pid))
    assert (await system.status(process)).reason == "deadline"


async def test_the_error_names_the_deadline_that_was_set_though_the_load_took_a_part_of_it(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, load = system.program(listener), system.kernel.lifecycle.load

    async def slow(parent: Any, name: str) -> Any:
        await asyncio.sleep(1.0)
        return await load(parent, name)

    monkeypatch.setattr(system.kernel.lifecycle, "find", lambda parent, name: None)
    monkeypatch.setattr(system.kernel.lifecycle, "load", slow)
    began = system.loop.time()
    pid = await system.call(Spawn(program, deadline=3.0))
    status = await system.status(system.table.alive[pid])
    assert status.error is not None
    assert (status.reason, status.error.message[:25]) == ("deadline", "the deadline of 3 s passe")
    assert system.loop.time() - began == pytest.approx(3.0)


async def test_a_client_cannot_be_suspended(system: System) -> None:
    with pytest.raises(InvalidCall):
        await system.call(Suspend(system.client.pid))


# ---- after the end


async def test_the_last_event_is_the_result_or_the_failure(system: System) -> None:
    async def broken(ctx: Context) -> None:
        raise RuntimeError("no")

    good, bad = system.recorder(), system.recorder()
    await system.status(system.spawn(adder, 1, stream=good.stream))
    await system.status(system.spawn(broken, stream=bad.stream))
    assert isinstance(good.events[-1], Result)
    assert good.ended
    assert isinstance(bad.events[-1], Failed)
    assert bad.events[-1].error.code == "AgentFailed"
    assert bad.ended


async def test_a_program_in_a_folder_is_loaded_off_the_loop(system: System, tmp_path: Any) -> None:
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "twice.py").write_text(
        "from llmosd import agent, Context\n@agent\nasync def twice(ctx: Context, n: int) -> int:\n    return 2 * n\n"
    )
    pid = await system.call(Spawn("twice", {"n": 4}))
    assert await system.result(pid) == 8


async def test_a_long_line_of_descendants_ends_with_its_ancestor(system: System) -> None:
    async def generations(ctx: Context, left: int) -> None:
        if left:
            await ctx.spawn("generations", {"left": left - 1})
        await ctx.sleep(3600)

    system.program(generations)
    pid = await system.call(Spawn("generations", {"left": 3000}, limits=Limits(depth=3000)))
    while len(system.kernel.table.alive) < 3001:
        await asyncio.sleep(0)
    await system.call(Kill(pid))
    assert not [process for process in system.kernel.table.alive.values() if not process.is_client]


async def test_nothing_of_a_process_that_failed_or_was_killed_waits_for_the_collector(system: System) -> None:
    async def fails(ctx: Context) -> None:
        try:
            await ctx.receive(timeout=1)
        except TimedOut as error:
            raise ValueError("too late") from error

    def threads() -> int:
        return sum(type(thing) is Thread for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = threads()
        for _ in range(20):
            assert (await system.status(system.spawn(fails))).reason == "failed"
            process = system.spawn(listener)
            await system.turns()
            await system.call(Kill(process.pid))
        await system.turns()
        assert threads() <= before + 2  # the last ones, in the variables above
    finally:
        gc.enable()
