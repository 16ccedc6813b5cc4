"""Tools that run in real threads while virtual time stands still, and a tool that hangs until the test releases it.

Used by the tests of tools. It never lets time pass while a tool computes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from ipc.abi import ToolMark
from ipc.syscalls import ToolInfo
from kernel.programs.tool import Tool
from llmosd.context import Context
from tests.support.system import System
from tests.support.virtual_time import VirtualTimeLoop

REAL = 10.0  # seconds that a test waits for a thread at most


class Bench:
    """Tools of the test. No time passes while one runs, except for a `Hanging` one after `hung` has returned."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.tools = system.kernel.tools
        loop = system.loop
        assert isinstance(loop, VirtualTimeLoop)
        self.jumping = loop._jumping
        self.frozen: set[int] = set()
        self._last = 0
        self._submit = self.tools.workers.submit
        self.tools.workers.submit = self.submit  # type: ignore[method-assign]

    def submit(self, function: Callable[[], None], done: Callable[[], None]) -> None:
        self._last += 1
        number = self._last
        self.frozen.add(number)
        self.jumping.executing += 1

        def thaw() -> None:
            self.thaw(number)
            done()

        self._submit(function, thaw)

    def thaw(self, number: int) -> None:
        if number in self.frozen:
            self.frozen.discard(number)
            self.jumping.executing -= 1

    def add(self, function: Callable[..., Any], **how: Any) -> str:
        name = function.__name__
        self.system.programs.tools[name] = Tool(function, ToolMark(name, "", **how), "test")
        return name

    async def hung(self, tool: Hanging, count: int = 1) -> None:
        """Return when `count` calls are inside `tool`; from then on time passes."""
        for _ in range(count):
            assert await asyncio.to_thread(tool.inside.acquire, timeout=REAL)
        for number in tuple(self.frozen):
            self.thaw(number)

    def row(self, name: str) -> ToolInfo:
        return self.tools._info(self.tools._limits[name].tool)

    async def idle(self, name: str) -> None:
        """Return when no call of the tool runs any more."""
        while self.tools._limits[name].running:
            await asyncio.to_thread(lambda: None)


class Hanging:
    """A tool that does not return until `go` is set."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.go = threading.Event()

    def function(self) -> Callable[..., Any]:
        def hang(number: int = 0) -> int:
            self.inside.release()
            assert self.go.wait(REAL)
            return number

        return hang


async def use(ctx: Context, name: str, args: dict[str, Any] | None = None, timeout: float | None = None) -> Any:
    return await ctx.tool(name, args, timeout=timeout)
