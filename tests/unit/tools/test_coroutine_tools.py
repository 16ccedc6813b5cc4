"""Tools that are coroutine functions: each call has a worker thread and an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from ipc.errors import TimedOut, ToolFailed
from ipc.syscalls import Kill
from llmosd import tool
from tests.support.system import System
from tests.support.tool_bench import REAL, Bench, use


class Endless:
    """A tool that waits until it is cancelled."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.cancelled = threading.Event()

    def function(self) -> Any:
        async def endless() -> None:
            self.inside.release()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()

        return endless


async def test_a_coroutine_function_runs_off_the_loop_of_the_kernel(system: System, bench: Bench) -> None:
    kernel, seen = asyncio.get_running_loop(), []

    async def double(number: int) -> int:
        await asyncio.sleep(0)
        seen.append((asyncio.get_running_loop(), threading.current_thread()))
        return number * 2

    assert await system.run(use, bench.add(tool(double)), {"number": 4}) == 8
    ((loop, thread),) = seen
    assert loop is not kernel
    assert thread is not threading.main_thread()


async def test_an_error_of_a_coroutine_function_fails_the_tool(system: System, bench: Bench) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(ToolFailed, match="ValueError: no"):
        await system.run(use, bench.add(fails))


async def test_tasks_that_a_coroutine_function_leaves_behind_end_with_it(system: System, bench: Bench) -> None:
    ended = threading.Event()

    async def leaves() -> None:
        async def other() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        leaves.task = asyncio.create_task(other())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    await system.run(use, bench.add(leaves))
    assert ended.is_set()


async def test_a_timeout_cancels_a_coroutine_function_and_its_place_is_free_when_it_has_ended(
    system: System, bench: Bench
) -> None:
    endless = Endless()
    name = bench.add(endless.function(), concurrency=1)
    call = system.thread(system.run(use, name, {}, 5.0))
    await bench.hung(endless)  # type: ignore[arg-type]
    with pytest.raises(TimedOut, match="it is cancelled, and holds its place until it returns"):
        await call
    assert await asyncio.to_thread(endless.cancelled.wait, REAL)
    await bench.idle(name)
    assert bench.row(name).abandoned == 0


async def test_a_coroutine_function_is_cancelled_when_its_caller_is_killed(system: System, bench: Bench) -> None:
    endless = Endless()
    process = system.spawn(use, bench.add(endless.function()))
    await bench.hung(endless)  # type: ignore[arg-type]
    await system.call(Kill(process.pid))
    assert await asyncio.to_thread(endless.cancelled.wait, REAL)
    await bench.idle("endless")
