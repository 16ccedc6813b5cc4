"""The calls that agents may not make on the loop and on signals, and the tasks that they see."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest

from ipc.errors import AgentFailed
from llmosd import Context
from tests.support.system import System


async def fine(ctx: Context) -> str:
    return "fine"


@pytest.mark.parametrize(
    "what",
    [
        lambda loop: loop.stop(),
        lambda loop: loop.close(),
        lambda loop: loop.set_debug(True),
        lambda loop: loop.set_task_factory(None),
        lambda loop: loop.set_default_executor(None),
        lambda loop: loop.shutdown_default_executor(),
        lambda loop: loop.shutdown_asyncgens(),
        lambda loop: loop.add_signal_handler(signal.SIGTERM, print),
        lambda loop: loop.remove_signal_handler(signal.SIGTERM),
    ],
)
async def test_an_agent_cannot_stop_or_change_the_loop(
    system: System, what: Callable[[asyncio.AbstractEventLoop], Any]
) -> None:
    async def agent(ctx: Context, in_callback: bool) -> str:
        loop = asyncio.get_running_loop()
        if not in_callback:
            what(loop)
        refused = loop.create_future()

        def callback() -> None:
            try:
                what(loop)
            except RuntimeError as error:
                refused.set_exception(error)

        loop.call_soon(callback)
        await refused
        return "done"

    for in_callback in (False, True):
        with pytest.raises(AgentFailed, match=r"process \d+ \(agent\) cannot call loop\.\w+\(\): "):
            await system.run(agent, in_callback=in_callback)
    assert await system.run(fine) == "fine"


@pytest.mark.parametrize(
    "what",
    [
        lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        lambda: signal.signal(signal.SIGCHLD, print),
        lambda: signal.set_wakeup_fd(-1),
    ],
)
async def test_an_agent_cannot_change_how_the_daemon_handles_signals(system: System, what: Callable[[], Any]) -> None:
    async def agent(ctx: Context) -> str:
        with pytest.raises(ValueError, match=r"process \d+ \(agent\) cannot call signal\."):
            what()
        return "refused"

    before = signal.getsignal(signal.SIGTERM)
    assert await system.run(agent) == "refused"
    assert signal.getsignal(signal.SIGTERM) is before


async def test_signals_that_an_agent_blocks_are_unblocked_after_its_step(system: System) -> None:
    async def agent(ctx: Context) -> set[Any]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        await asyncio.sleep(0.01)
        return signal.pthread_sigmask(signal.SIG_BLOCK, ()) - before

    assert await system.run(agent) == []  # a set becomes a list in a result


async def test_an_agent_sees_the_threads_of_its_own_process_only(system: System) -> None:
    async def agent(ctx: Context) -> list[int]:
        mine = ctx.start_thread(asyncio.sleep(1))
        seen = asyncio.all_tasks()
        assert seen == {mine, asyncio.current_task()} == asyncio.tasks.all_tasks(asyncio.get_running_loop())
        in_callback = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: in_callback.set_result(len(asyncio.all_tasks())))
        return [len(seen), await in_callback]

    others = [system.spawn(agent) for _ in range(3)]
    assert await system.run(agent) == [2, 2]
    assert [await system.result(other) for other in others] == [[2, 2]] * 3
    assert asyncio.current_task() in asyncio.all_tasks()


async def test_a_gather_of_an_ended_agent_is_completed_for_others(system: System) -> None:
    shared: dict[str, Any] = {}

    async def maker(ctx: Context) -> None:
        shared["part"] = asyncio.get_running_loop().create_future()
        shared["all"] = asyncio.gather(shared["part"])

    async def waiter(ctx: Context) -> Any:
        asyncio.get_running_loop().call_soon(shared["part"].set_result, 1)
        return await shared["all"]

    await system.run(maker)
    assert await system.run(waiter) == [1]
