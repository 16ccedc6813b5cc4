"""Which process owns what the loop calls, outside the threads of processes."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from ipc.errors import AgentFailed
from kernel.core.process import Process, Thread
from kernel.programs.origin import ORIGIN
from llmosd import Context
from tests.support.system import System


async def fine(ctx: Context) -> str:
    return "fine"


async def test_a_task_that_a_callback_makes_is_a_thread_of_its_process_and_ends_with_it(system: System) -> None:
    ticks: list[int] = []

    async def agent(ctx: Context) -> str:
        async def forever() -> None:
            while True:
                await ctx.sleep(1)
                ticks.append(1)

        asyncio.get_running_loop().call_later(1, lambda: asyncio.ensure_future(forever()))
        await ctx.sleep(4.5)
        paths = [thread.path for thread in asyncio.all_tasks() if isinstance(thread, Thread)]
        return " ".join(sorted(paths))

    assert await system.run(agent) == "0 0-c1"
    before = len(ticks)
    assert before == 3
    await asyncio.sleep(20)
    assert len(ticks) == before


async def test_calls_in_tasks_of_callbacks_do_not_disturb_other_agents(system: System) -> None:
    async def silent(ctx: Context) -> None:
        while True:
            await ctx.receive()

    async def server(ctx: Context) -> None:
        while True:
            message = await ctx.receive()
            await ctx.sleep(0.5)
            await ctx.reply(message, message.body)

    async def innocent(ctx: Context, to: int) -> str:
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[Any] = loop.create_future()
        loop.call_later(1, lambda: ctx.start_thread(ask(ctx, to, asked)))
        return str(await asked)

    async def ask(ctx: Context, to: int, asked: asyncio.Future[Any]) -> None:
        try:
            asked.set_result(await ctx.call(to, "mine", timeout=1.0))
        except Exception as error:
            asked.set_result(type(error).__name__)

    async def other(ctx: Context, to: int) -> Any:
        await ctx.sleep(0.7)
        return await ctx.call(to, "question", timeout=5.0)

    mute, answering = system.spawn(silent), system.spawn(server)
    first = system.spawn(innocent, to=mute.pid)
    assert await system.run(other, to=answering.pid) == "question"
    assert await system.result(first) == "TimedOut"


async def test_callbacks_of_the_kernel_have_no_owner_even_if_a_step_of_an_agent_causes_them(system: System) -> None:
    owners: list[object] = []
    system.kernel.process_exit.on_end.append(lambda process: owners.append(ORIGIN.get()))

    async def parent(ctx: Context) -> None:
        await ctx.spawn(system.program(fine))
        await ctx.sleep(1)

    await system.run(parent)
    assert owners == [None, None]


async def test_an_exit_in_a_callback_ends_its_process(system: System) -> None:
    async def agent(ctx: Context) -> None:
        asyncio.get_running_loop().call_later(1, exit_now)
        await ctx.sleep(60)

    def exit_now() -> None:
        raise SystemExit(3)

    with pytest.raises(AgentFailed, match="SystemExit: 3"):
        await system.run(agent)


async def test_no_callback_of_an_ended_process_is_called(system: System) -> None:
    called: list[int] = []

    async def agent(ctx: Context) -> None:
        asyncio.get_running_loop().call_later(5, called.append, 1)

    await system.run(agent)
    await asyncio.sleep(10)
    assert called == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_exception_handler_gets_the_errors_of_its_own_process(system: System) -> None:
    async def agent(ctx: Context, handles: bool) -> list[str]:
        loop = asyncio.get_running_loop()
        errors: list[str] = []
        if handles:
            loop.set_exception_handler(lambda loop, context: errors.append(str(context["exception"])))
        loop.call_soon(lambda: 1 / 0)
        await ctx.sleep(1)
        assert (loop.get_exception_handler() is not None) is handles
        return errors

    first, second = system.spawn(agent, handles=True), system.spawn(agent, handles=False)
    assert await system.result(first) == ["division by zero"]
    assert await system.result(second) == []
    assert system.loop.get_exception_handler() is None


async def test_an_asynchronous_generator_is_finished_by_a_thread_of_its_process(system: System) -> None:
    finished: list[Process] = []

    async def numbers(ctx: Context) -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            await ctx.sleep(0)
            finished.append(asyncio.current_task().process)  # type: ignore[union-attr]

    dropped: list[Any] = []

    async def owner(ctx: Context) -> None:
        generator = numbers(ctx)
        await anext(generator)
        dropped.append(generator)
        del generator
        await ctx.sleep(2)

    async def other(ctx: Context) -> None:
        dropped.clear()
        gc.collect()
        await ctx.sleep(1)

    process = system.spawn(owner)
    await system.run(other)
    await system.result(process)
    assert finished == [process]


async def test_a_generator_that_has_ended_does_not_hold_its_process(system: System) -> None:
    async def numbers() -> AsyncGenerator[int]:
        yield 1

    async def owner(ctx: Context) -> None:
        async for _ in numbers():
            pass

    process = weakref.ref(system.spawn(owner))
    await asyncio.sleep(1)
    await system.run(fine)
    system.table.ended.clear()
    gc.collect()
    assert process() is None


async def test_the_generator_of_a_process_that_is_gone_is_never_finished(system: System) -> None:
    finished, dropped = [], []

    async def numbers() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            finished.append(1)

    async def owner(ctx: Context) -> None:
        generator = numbers()
        await anext(generator)
        dropped.append(generator)

    process = weakref.ref(system.spawn(owner))
    await asyncio.sleep(1)
    await system.run(fine)
    system.table.ended.clear()
    gc.collect()
    assert process() is None
    dropped.clear()
    gc.collect()
    await asyncio.sleep(1)
    assert finished == []


async def test_the_kernels_generator_is_finished_though_its_id_was_that_of_an_agents(system: System) -> None:
    finished: list[int] = []

    async def numbers() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            finished.append(1)

    async def owner(ctx: Context) -> None:
        async for _ in numbers():
            pass

    process = system.spawn(owner)
    await system.result(process)
    generator = numbers()
    owners = system.loop._generators  # type: ignore[attr-defined]
    owners._cleared[id(generator)] = weakref.ref(process)
    await anext(generator)
    del generator
    await asyncio.sleep(1)
    assert finished == [1, 1]
