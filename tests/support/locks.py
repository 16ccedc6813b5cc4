"""An agent that holds a lock, and the row of the one synchronisation object in use.

Used by the tests of locks and the like. It never takes a lock for the test itself.
"""

from __future__ import annotations

from ipc.syscalls import Locks
from llmosd.context import Context
from tests.support.system import System


async def hold(ctx: Context, seconds: float = 10.0) -> None:
    async with ctx.lock("a"):
        await ctx.sleep(seconds)


async def row(system: System) -> tuple[str, list[int], list[int]]:
    """State, holders and waiters of the only object in use. The condition of a lock does not count."""
    (info,) = [info for info in await system.call(Locks()) if info.kind != "condition"]
    return info.state, info.holders, info.waiters
