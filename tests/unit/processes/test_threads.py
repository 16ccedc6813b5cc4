"""The threads of a process: started, awaited, suspended, ended and abandoned one by one."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from ipc.errors import AgentFailed, InvalidCall, UnknownProcess, UnknownThread
from ipc.syscalls import Kill, Resume, Suspend, Threads
from llmosd.context import Context
from tests.support.agents import forever, make_call
from tests.support.system import System


async def test_threads_share_the_process_and_are_told_apart_by_who_started_them(system: System) -> None:
    async def agent(ctx: Context) -> list[int]:
        async def work(n: int) -> int:
            await ctx.memory.set(str(n), n)
            await ctx.sleep(n)
            return n

        threads = [ctx.start_thread(work(n), name=f"worker {n}") for n in (3, 1, 2)]
        values = [await thread for thread in threads]
        return [*values, len(await ctx.memory.keys())]

    process = system.spawn(agent)
    await system.turns()
    rows = await system.call(Threads(process.pid))
    assert [(row.path, row.name) for row in rows] == [
        ("0", "agent-" + str(process.pid)),
        ("0-1", "worker 3"),
        ("0-2", "worker 1"),
        ("0-3", "worker 2"),
    ]
    assert [row.waits_for for row in rows] == ["outside", "time", "time", "time"]
    assert await system.result(process) == [3, 1, 2, 3]


async def test_a_failure_of_a_thread_that_nobody_awaits_is_the_processes_own(system: System) -> None:
    async def agent(ctx: Context) -> None:
        async def fail() -> None:
            raise ValueError("in the background")

        ctx.start_thread(fail())
        await ctx.sleep(100)

    with pytest.raises(AgentFailed, match="in the background"):
        await system.run(agent)


async def test_a_failure_of_a_thread_that_is_awaited_goes_to_who_awaits_it(system: System) -> None:
    async def agent(ctx: Context) -> str:
        async def fail() -> None:
            await ctx.sleep(1)
            raise ValueError("awaited")

        try:
            await ctx.start_thread(fail())
        except ValueError as error:
            return str(error)
        return "nothing"

    assert await system.run(agent) == "awaited"


async def test_only_a_coroutine_makes_a_thread(system: System) -> None:
    async def agent(ctx: Context) -> None:
        ctx.start_thread(print)  # type: ignore[arg-type]

    with pytest.raises(InvalidCall, match="a thread runs a coroutine"):
        await system.run(agent)


async def test_one_thread_is_suspended_and_the_others_go_on(system: System) -> None:
    log: list[str] = []

    async def agent(ctx: Context) -> None:
        async def work(name: str) -> None:
            for n in range(3):
                await ctx.sleep(1)
                log.append(f"{name}{n}")

        await asyncio.gather(*(ctx.start_thread(work(name)) for name in "ab"))

    process = system.spawn(agent)
    await system.turns()
    await system.call(Suspend(process.pid, "0-1"))
    assert await system.thread_states(process) == {"0": "blocked", "0-1": "suspended", "0-2": "blocked"}
    await asyncio.sleep(10)
    assert log == ["b0", "b1", "b2"]
    # Both have to be resumed, in any order.
    await system.call(Suspend(process.pid))
    await system.call(Resume(process.pid, "0-1"))
    await asyncio.sleep(10)
    assert log == ["b0", "b1", "b2"]
    await system.call(Resume(process.pid))
    await system.status(process)
    assert log == ["b0", "b1", "b2", "a0", "a1", "a2"]


async def test_resuming_the_process_leaves_a_suspended_thread_held(system: System) -> None:
    async def agent(ctx: Context) -> str:
        thread = ctx.start_thread(ctx.sleep(1))
        await asyncio.wait([thread], timeout=50)
        return "done" if thread.done() else "held"

    process = system.spawn(agent)
    await system.turns()
    await system.call(Suspend(process.pid, "0-1"))
    await system.call(Suspend(process.pid))
    await asyncio.sleep(5)
    await system.call(Resume(process.pid))
    assert await system.result(process) == "held"


async def test_one_thread_is_ended_and_the_process_goes_on(system: System) -> None:
    cleaned: list[str] = []

    async def agent(ctx: Context) -> str:
        async def work() -> None:
            try:
                await ctx.receive()
            finally:
                cleaned.append("work")

        thread = ctx.start_thread(work())
        await asyncio.wait([thread])
        return "cancelled" if thread.cancelled() else "ended"

    process = system.spawn(agent)
    await system.turns()
    assert await system.call(Kill(process.pid, "0-1")) is None
    assert await system.result(process) == "cancelled"
    assert cleaned == ["work"]


async def test_a_suspended_thread_can_be_ended(system: System) -> None:
    async def agent(ctx: Context) -> bool:
        thread = ctx.start_thread(ctx.sleep(100))
        await asyncio.wait([thread])
        return thread.cancelled()

    process = system.spawn(agent)
    await system.turns()
    await system.call(Suspend(process.pid, "0-1"))
    await system.call(Kill(process.pid, "0-1"))
    assert await system.result(process) is True


async def test_a_thread_that_ignores_its_end_is_abandoned(system: System) -> None:
    async def agent(ctx: Context) -> None:
        async def stubborn() -> None:
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await ctx.sleep(100)

        ctx.start_thread(stubborn())
        await ctx.sleep(10)

    process = system.spawn(agent)
    await system.turns()
    await system.call(Kill(process.pid, "0-1"))
    assert await system.thread_states(process) == {"0": "blocked"}
    assert (await system.status(process)).reason == "done"


async def test_an_abandoned_thread_that_was_held_does_not_come_back_with_its_process(system: System) -> None:
    async def agent(ctx: Context) -> str:
        ctx.start_thread(ctx.sleep(100))
        await ctx.sleep(10)
        return "goes on"

    process = system.spawn(agent)
    await system.turns()
    await system.call(Suspend(process.pid))
    await system.call(Kill(process.pid, "0-1"))  # cannot see its cancellation, and is abandoned after its grace
    await system.call(Resume(process.pid))
    assert await system.result(process) == "goes on"


async def test_an_abandoned_thread_does_not_come_back_with_what_it_waited_for(system: System) -> None:
    futures: list[asyncio.Future[None]] = []

    async def stubborn(ctx: Context) -> None:
        while True:
            futures.append(asyncio.get_running_loop().create_future())
            with contextlib.suppress(asyncio.CancelledError):
                await futures[-1]

    process = system.spawn(stubborn)
    await system.turns()
    await system.call(Kill(process.pid))
    futures[-1].set_result(None)
    other = system.spawn(forever)
    await system.turns()
    assert (process.ended, len(futures)) == (True, 2)
    assert await system.thread_states(other) == {"0": "blocked"}


async def test_a_thread_that_suspends_itself_and_ends_leaves_nobody_held(system: System) -> None:
    async def agent(ctx: Context) -> None:
        ctx.start_thread(make_call(ctx, Suspend(ctx.pid, "0-1")))
        await ctx.sleep(1e9)

    process = system.spawn(agent)
    await system.turns()
    assert await system.thread_states(process) == {"0": "blocked"}
    assert process.held_back is None


async def test_what_cannot_be_done_to_threads_is_named(system: System) -> None:
    process = system.spawn(forever)
    for call in (Suspend, Resume, Kill):
        with pytest.raises(UnknownThread, match=r"no thread '0-7'; it has 0$"):
            await system.call(call(process.pid, "0-7"))
    with pytest.raises(InvalidCall, match="kill the process"):
        await system.call(Kill(process.pid, "0"))
    with pytest.raises(UnknownProcess):
        await system.call(Threads(999))
