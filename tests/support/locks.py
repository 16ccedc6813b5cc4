"""A lock and its holder: an agent that holds one, and the row of the one thing that is in use.

Used by the tests of locks and their kin. It never takes a lock for the test itself.
"""

from __future__ import annotations

from ipc.syscalls import Locks
from llmosd.context import Context
from tests.support.system import System


async def hold(ctx: Context, seconds: float = 10.0) -> None:
    async with ctx.lock("a"):
        await ctx.sleep(seconds)


async def row(system: System) -> tuple[str, list[int], list[int]]:
    """State, holders and waiters of the only thing in use, its condition aside."""
    (info,) = [info for info in await system.call(Locks()) if info.kind != "condition"]
    return info.state, info.holders, info.waiters
