"""Hand-overs between the loop and the worker threads of tools: either side may be late, and the caller may be killed.

At each moment of a call: its place comes back, its thread is used again, and the next call gets its own result.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ipc.abi import ToolMark
from kernel.programs.tool import Tool
from llmosd.context import Context
from tests.support.system import System

pytestmark = pytest.mark.real_time

GUARD = 60.0  # seconds; only a test that hangs takes as long
IN_THE_THREAD = ["before the function", "in the function", "after the function"]
REPORTED = "the thread has reported, and the loop is late"


class FirstCall:
    """Holds the first call of a tool at a moment. `loop` stands for the loop, as the worker threads see it."""

    def __init__(self, system: System, moment: str) -> None:
        self._moment = moment
        self._loop = system.loop
        self._calls = 0
        self._reached, self.go, self._reported = threading.Event(), threading.Event(), threading.Event()
        self.workers = workers = system.kernel.tools.workers
        self._submit = workers.submit
        workers.submit = self.submit  # type: ignore[method-assign]
        workers._loop = self  # type: ignore[assignment]

        def tool(number: int) -> int:
            self._hold("in the function", number == 1)
            return number

        system.install_tool(Tool(tool, ToolMark("tool", "", concurrency=1), "test"))

    def submit(self, function: Callable[[], None], done: Callable[[], None]) -> None:
        self._calls += 1
        first = self._calls == 1

        def held() -> None:
            self._hold("before the function", first)
            function()
            self._hold("after the function", first)

        self._submit(held, done)

    def call_soon_threadsafe(self, *args: Any) -> None:
        self._loop.call_soon_threadsafe(*args)
        self._reported.set()

    def _hold(self, moment: str, first: bool) -> None:
        if first and moment == self._moment:
            self._reached.set()
            assert self.go.wait(GUARD)

    async def at_the_moment(self) -> None:
        if self._moment == REPORTED:
            while not self._calls:
                await asyncio.sleep(0)
            assert self._reported.wait(GUARD)  # blocks the loop, which learns of the report only after this
        else:
            assert await asyncio.to_thread(self._reached.wait, GUARD)


@pytest.mark.parametrize("killed", [False, True], ids=["waits", "killed"])
@pytest.mark.parametrize("moment", [*IN_THE_THREAD, REPORTED])
async def test_a_call_of_a_tool_ends_as_it_should_whichever_side_is_late(
    system: System, moment: str, killed: bool
) -> None:
    async def caller(ctx: Context, number: int) -> Any:
        return await ctx.tool("tool", {"number": number})

    first = FirstCall(system, moment)
    one = system.spawn(caller, number=1)
    await first.at_the_moment()
    if killed:
        system.kernel.process_exit.end(one, "killed", "the test kills it")
    other = system.spawn(caller, number=2)  # it waits for the only place
    if killed:
        assert (await system.status(one)).reason == "killed"
    first.go.set()
    assert killed or await system.result(one) == 1
    assert await system.result(other) == 2
    (row,) = [row for row in system.kernel.tools._limits.values() if row.tool.name == "tool"]
    assert (row.running, row.abandoned, list(row.queue), row.callers) == (0, 0, [], {})
    assert first.workers.threads == 1


@pytest.mark.parametrize("moment", IN_THE_THREAD)
async def test_the_subsystem_closes_while_a_call_is_at_any_moment(system: System, moment: str) -> None:
    async def caller(ctx: Context) -> Any:
        return await ctx.tool("tool", {"number": 1})

    first = FirstCall(system, moment)
    one = system.spawn(caller)
    await first.at_the_moment()
    system.kernel.tools.close()
    system.kernel.process_exit.end(one, "killed", "the daemon stops")
    assert (await system.status(one)).reason == "killed"
    first.go.set()
    await system.until(lambda: not first.workers.threads)
