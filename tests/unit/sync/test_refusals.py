"""Misuse of synchronisation: it is refused with a named error, counted, and leaves no trace."""

from __future__ import annotations

import pytest

from ipc.errors import InvalidCall, Killed, NotHeld, NotPermitted, SyncMismatch
from ipc.syscalls import AcquireLock, Kill, Locks, SetEvent
from llmosd.context import Context
from tests.support.locks import hold, row

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda ctx: ctx.lock("x").release(), NotHeld),
        (lambda ctx: ctx.semaphore("x", 1).release(), NotHeld),
        (lambda ctx: ctx.condition("x").wait(), NotHeld),
        (lambda ctx: ctx.condition("x").notify(), NotHeld),
        (lambda ctx: ctx.lock("a").acquire(-1), InvalidCall),
        (lambda ctx: ctx.lock("x").acquire(float("nan")), InvalidCall),
        (lambda ctx: ctx.event("x").wait(-1), InvalidCall),
        (lambda ctx: ctx.barrier("x", 2).wait(-1), InvalidCall),
        (lambda ctx: ctx.lock("").acquire(), InvalidCall),
        (lambda ctx: ctx.lock(5).acquire(), InvalidCall),
        (lambda ctx: ctx.semaphore("x", 0).acquire(), InvalidCall),
        (lambda ctx: ctx.barrier("x", 0).wait(), InvalidCall),
        (lambda ctx: ctx.semaphore("a", 1).acquire(), SyncMismatch),
        (lambda ctx: ctx.semaphore("s", 3).acquire(), SyncMismatch),
        (lambda ctx: ctx.event("s").set(), SyncMismatch),
    ],
)
async def test_what_cannot_be_is_refused_by_name_counted_and_leaves_nothing(system, use, error):
    async def holder(ctx: Context) -> None:
        async with ctx.lock("a"), ctx.semaphore("s", 2):
            await ctx.sleep(10)

    async def wrong(ctx: Context) -> None:
        await use(ctx)

    system.spawn(holder)
    await system.turns()
    before = await system.call(Locks())
    with pytest.raises(error):
        await system.run(wrong)
    assert system.kernel.gate.errors[error.__name__] == 1
    assert await system.call(Locks()) == before


async def test_clients_may_look_but_not_take(system):
    for call in (AcquireLock("a"), SetEvent("e")):
        with pytest.raises(NotPermitted, match="for the threads of an agent"):
            await system.call(call)
    process = system.spawn(hold)
    await system.turns()
    assert await row(system) == ("held", [process.pid], [])
    await system.call(Kill(process.pid))
    with pytest.raises(Killed):
        await system.result(process)
