"""Processes: how they start, wait, are suspended and end, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import pytest

from ipc.codec import reveal
from ipc.errors import (
    AgentFailed,
    BadArguments,
    DeadlineExceeded,
    InvalidCall,
    Killed,
    NotEncodable,
    NotPermitted,
    ShuttingDown,
    TimedOut,
    UnknownProcess,
    UnknownProgram,
)
from ipc.messages import Failed, Result
from ipc.syscalls import Kill, Resume, Shutdown, Spawn, Suspend, Wait
from kernel.process import REMEMBERED
from kernel.thread import Thread
from llmosd.context import Context


async def forever(ctx: Context) -> None:
    await ctx.receive()


async def adder(ctx: Context, a: int, b: int = 2) -> int:
    return a + b


# ---- start and end


async def test_a_process_answers_its_value_and_leaves_nothing_behind(system: Any) -> None:
    assert await system.run(adder, 3, b=4) == 7
    assert list(system.table.alive.values()) == [system.client]
    assert not system.client.children
    assert not system.client.threads
    assert system.tasks() == set()


async def test_status_says_how_it_ended_and_what_it_used(system: Any) -> None:
    async def worker(ctx: Context) -> int:
        await ctx.sleep(3)
        return 5

    before = system.loop.time()
    status = await system.status(system.spawn(worker))
    assert (status.reason, status.error, status.program) == ("done", None, "worker")
    assert reveal(status.value) == 5
    assert status.usage.calls == 1
    assert system.loop.time() - before == pytest.approx(3)


async def test_waiting_for_a_process_that_has_ended_answers_at_once(system: Any) -> None:
    process = system.spawn(adder, 1)
    first = await system.status(process)
    assert await system.status(process) == first


async def test_many_waiters_are_all_answered(system: Any) -> None:
    process = system.spawn(forever)
    waiters = [system.thread(system.kernel.gate.enter(system.client, Wait(process.pid))) for _ in range(5)]
    await system.turns()
    await system.call(Kill(process.pid))
    assert {(await waiter).reason for waiter in waiters} == {"killed"}
    assert not process.watchers


async def test_wait_times_out_and_the_process_goes_on(system: Any) -> None:
    process = system.spawn(forever)
    with pytest.raises(TimedOut) as caught:
        await system.call(Wait(process.pid, 5.0))
    assert caught.value.data == {"pid": process.pid}
    assert not process.ended
    assert not process.watchers


async def test_a_process_cannot_wait_for_itself(system: Any) -> None:
    async def narcissus(ctx: Context) -> None:
        await ctx.wait(ctx.pid)

    with pytest.raises(InvalidCall, match="its own end"):
        await system.run(narcissus)


async def test_unknown_pids_tell_ended_from_never(system: Any) -> None:
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


async def test_an_unknown_program_is_named_with_the_known_ones(system: Any) -> None:
    system.program(adder)
    with pytest.raises(UnknownProgram, match="adder"):
        await system.call(Spawn("addr"))


# ---- arguments and results


@pytest.mark.parametrize(
    ("args", "positional", "what"),
    [
        ({}, (), "argument a is missing"),
        ({"a": 1, "c": 2}, (), "there is no argument c; Known: a, b"),
        ({"a": "1"}, (), "Expected `int`, got `str`"),
        ({"a": 1}, (2,), "got a twice"),
        ({}, (1, 2, 3), "takes 2 positional arguments, got 3"),
    ],
)
async def test_arguments_are_checked_before_the_agent_runs(
    system: Any, args: dict[str, Any], positional: tuple[Any, ...], what: str
) -> None:
    system.program(adder)
    with pytest.raises(BadArguments) as caught:
        await system.call(Spawn("adder", args, positional))
    assert what in caught.value.message
    assert "adder(a: int, b: int = 2)" in caught.value.message.replace("'int'", "int")
    assert len(system.table.alive) == 1


async def test_lenient_arguments_are_read_from_text(system: Any) -> None:
    system.program(adder)
    pid = await system.call(Spawn("adder", {"b": "5"}, ("4",), lenient=True))
    assert await system.result(pid) == 9


async def test_defaults_hold_where_no_argument_is_given(system: Any) -> None:
    assert await system.run(adder, 1) == 3


async def test_arguments_are_not_shared_with_the_parent(system: Any) -> None:
    async def child(ctx: Context, items: list[int]) -> list[int]:
        items.append(2)
        return items

    async def parent(ctx: Context) -> list[int]:
        items = [1]
        pid = await ctx.spawn("child", {"items": items})
        got = await ctx.wait(pid)
        got.append(3)
        assert await ctx.wait(pid) == [1, 2]
        return items

    system.program(child)
    assert await system.run(parent) == [1]


async def test_a_result_that_cannot_travel_is_a_named_failure(system: Any) -> None:
    async def strange(ctx: Context) -> object:
        return object()

    with pytest.raises(NotEncodable, match="the result of strange"):
        await system.run(strange)


async def test_an_agent_that_raises_fails_with_its_traceback(system: Any) -> None:
    async def broken(ctx: Context) -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(AgentFailed, match="broken: ZeroDivisionError: by zero") as caught:
        await system.run(broken)
    assert "test_lifecycle.py" in caught.value.data["traceback"]
    assert "in broken" in caught.value.data["traceback"]


async def test_an_agent_that_lets_a_kernel_error_pass_fails_with_that_error(system: Any) -> None:
    async def careless(ctx: Context) -> None:
        await ctx.wait(12345)

    with pytest.raises(UnknownProcess) as caught:
        await system.run(careless)
    assert caught.value.data == {"pid": 12345}


async def test_an_agent_that_cancels_itself_fails(system: Any) -> None:
    async def desperate(ctx: Context) -> None:
        raise asyncio.CancelledError

    with pytest.raises(AgentFailed, match="cancelled itself"):
        await system.run(desperate)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_an_exit_in_an_agent_ends_only_that_agent(system: Any, kind: type[BaseException]) -> None:
    async def leaver(ctx: Context) -> None:
        raise kind(3)

    other = system.spawn(forever)
    with pytest.raises(AgentFailed, match=kind.__name__):
        await system.run(leaver)
    assert not other.ended


# ---- kill


async def test_kill_before_the_first_step_runs_nothing(system: Any) -> None:
    ran = []

    async def agent(ctx: Context) -> None:
        ran.append(1)

    process = system.spawn(agent)
    status = await system.call(Kill(process.pid))
    assert (status.reason, status.error.code) == ("killed", "Killed")
    assert ran == []


async def test_kill_of_a_blocked_process_runs_its_finally(system: Any) -> None:
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


async def test_a_dying_process_makes_no_more_calls_but_may_log(system: Any) -> None:
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


async def test_kill_of_a_suspended_process_ends_it(system: Any) -> None:
    process = system.spawn(forever)
    await system.turns()
    await system.call(Suspend(process.pid))
    assert (await system.call(Kill(process.pid))).reason == "killed"


async def test_kill_of_a_process_suspended_before_its_first_step_ends_it(system: Any) -> None:
    process = system.spawn(forever)
    await system.call(Suspend(process.pid))
    await system.turns()
    assert (await system.call(Kill(process.pid))).reason == "killed"
    assert system.tasks() == set()


async def test_kill_is_idempotent(system: Any) -> None:
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
    assert system.kernel.ending.exits == {"killed": 1}


async def test_a_process_that_kills_itself_is_killed(system: Any) -> None:
    async def suicidal(ctx: Context) -> None:
        await ctx.kill(ctx.pid)

    status = await system.status(system.spawn(suicidal))
    assert status.reason == "killed"


async def test_a_value_returned_while_dying_does_not_undo_the_kill(system: Any) -> None:
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


async def test_a_thread_that_swallows_its_cancellation_is_abandoned_after_the_grace_time(system: Any) -> None:
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
    assert system.tasks() == set()
    assert list(system.table.alive.values()) == [system.client]


async def test_a_deadline_ends_the_process_and_says_so(system: Any) -> None:
    process = system.spawn(forever, deadline=7.0)
    before = system.loop.time()
    with pytest.raises(DeadlineExceeded, match=r"7\.0 s"):
        await system.result(process)
    assert system.loop.time() - before == pytest.approx(7.0)
    assert process.status.reason == "deadline"


async def test_the_deadline_of_a_process_that_ended_is_forgotten(system: Any) -> None:
    process = system.spawn(adder, 1, deadline=5.0)
    assert await system.result(process) == 3
    assert process.timer is None
    await asyncio.sleep(10)
    assert process.status.reason == "done"


# ---- children


async def test_a_child_dies_with_its_parent_whatever_way_it_ends(system: Any) -> None:
    async def returning(ctx: Context) -> int:
        return await ctx.spawn("forever")

    async def raising(ctx: Context) -> None:
        await ctx.spawn("forever")
        raise RuntimeError("x")

    async def killed(ctx: Context) -> None:
        await ctx.spawn("forever")
        await ctx.receive()

    system.program(forever)
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


async def test_grandchildren_end_before_the_parent_is_gone(system: Any) -> None:
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
    assert system.tasks() == set()


async def test_a_detached_child_outlives_its_parent(system: Any) -> None:
    async def parent(ctx: Context) -> int:
        return await ctx.spawn("forever", detach=True)

    system.program(forever)
    child = system.table.get(await system.run(parent))
    assert child.parent is None
    assert not child.ended
    await system.call(Kill(child.pid))


async def test_one_failing_child_does_not_abort_its_siblings(system: Any) -> None:
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


async def test_a_child_inherits_priority_and_owner(system: Any) -> None:
    async def parent(ctx: Context) -> None:
        await ctx.spawn("forever")
        await ctx.spawn("forever", priority=-3, owner="other")
        await ctx.receive()

    system.program(forever)
    process = system.spawn(parent, priority=4)
    await system.turns()
    first, second = (system.table.get(process.pid + n) for n in (1, 2))
    assert (first.priority, first.owner) == (4, "test")
    assert (second.priority, second.owner) == (-3, "other")


async def test_a_client_that_disconnects_takes_its_tasks_along(system: Any) -> None:
    client = system.kernel.lifecycle.open_client("passing")
    process = system.spawn(forever, parent=client)
    await system.turns()
    system.kernel.ending.end(client, "killed", "the client disconnected")
    assert (await system.status(process)).reason == "killed"
    await system.turns()
    with pytest.raises(UnknownProcess):
        system.table.find(client.pid)


# ---- suspend


async def test_a_suspended_process_makes_no_progress(system: Any) -> None:
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
    assert len(ticks) == 5  # the one that was due, and two more


async def test_suspending_twice_needs_one_resume(system: Any) -> None:
    process = system.spawn(adder, 1)
    await system.call(Suspend(process.pid))
    await system.call(Suspend(process.pid))
    await system.turns()
    assert not process.ended
    await system.call(Resume(process.pid))
    assert await system.result(process) == 3


async def test_a_deadline_holds_for_a_suspended_process(system: Any) -> None:
    process = system.spawn(forever, deadline=3.0)
    await system.call(Suspend(process.pid))
    assert (await system.status(process)).reason == "deadline"


async def test_a_client_cannot_be_suspended(system: Any) -> None:
    with pytest.raises(InvalidCall):
        await system.call(Suspend(system.client.pid))


# ---- streams and the end of the daemon


async def test_the_last_event_is_the_result_or_the_failure(system: Any) -> None:
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


async def test_draining_refuses_new_tasks_and_lets_running_ones_end(system: Any) -> None:
    async def child(ctx: Context) -> str:
        return "done"

    async def slow(ctx: Context) -> str:
        await ctx.sleep(5)
        result: str = await ctx.wait(await ctx.spawn("child"))
        return result

    system.program(child)
    process = system.spawn(slow)
    draining = asyncio.ensure_future(system.kernel.drain(60))
    await system.turns()
    with pytest.raises(ShuttingDown):
        await system.call(Spawn("slow"))
    await draining
    assert process.status.reason == "done"


async def test_draining_kills_what_does_not_end_in_time(system: Any) -> None:
    process = system.spawn(forever)
    before = system.loop.time()
    await system.kernel.drain(10)
    assert process.status.reason == "killed"
    assert system.loop.time() - before == pytest.approx(10)


async def test_an_agent_may_not_shut_the_daemon_down(system: Any) -> None:
    process = system.spawn(forever)
    with pytest.raises(NotPermitted):
        await system.call(Shutdown(), process)


async def test_a_parent_killed_while_it_loads_a_program_spawns_nothing(system: Any, tmp_path: Any) -> None:
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


async def test_a_program_in_a_folder_is_loaded_off_the_loop(system: Any, tmp_path: Any) -> None:
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "twice.py").write_text(
        "from llmosd import agent, Context\n@agent\nasync def twice(ctx: Context, n: int) -> int:\n    return 2 * n\n"
    )
    pid = await system.call(Spawn("twice", {"n": 4}))
    assert await system.result(pid) == 8


async def test_a_long_line_of_descendants_ends_with_its_ancestor(system: Any) -> None:
    async def generations(ctx: Context, left: int) -> None:
        if left:
            await ctx.spawn("generations", {"left": left - 1})
        await ctx.sleep(3600)

    ancestor = system.spawn(generations, left=3000)
    while len(system.kernel.table.alive) < 3001:
        await asyncio.sleep(0)
    await system.call(Kill(ancestor.pid))
    assert not [process for process in system.kernel.table.alive.values() if not process.is_client]


async def test_nothing_of_a_process_that_failed_or_was_killed_waits_for_the_collector(system: Any) -> None:
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
            process = system.spawn(forever)
            await system.turns()
            await system.call(Kill(process.pid))
        await system.turns()
        assert threads() <= before + 2  # the last ones, in the variables above
    finally:
        gc.enable()
