"""Steps of actors on locks, semaphores, conditions, barriers and events.

Part of `cast.Player`. Threads in a critical section are written into the ledger, which knows how many it admits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from ipc.errors import NotHeld, TimedOut
from llmosd.context.sync import Condition
from tests.support.exploration.actor import Actor

SHARES = {"hold": 10, "condition": 6, "barrier": 4, "event": 4, "release_what_is_not_held": 1}
PERMITS = {"lock": 1, "other lock": 1, "pair": 2, "crowd": 3}  # a lock is a semaphore of one with calls of its own


class Locks(Actor):
    """Holds locks and waits for them."""

    async def hold(self) -> None:
        """Hold a lock or a permit for up to two steps, which may acquire another or crash."""
        name = self.chance.choice(sorted(PERMITS))
        most = PERMITS[name]
        held = self.ctx.lock(name) if most == 1 else self.ctx.semaphore(name, most)
        patience = self.world.patience()
        try:
            async with self.limit(patience):
                await held.acquire(patience)
        except TimedOut:
            if not self.world.in_use(name):
                self.world.problem(f"{name} is free, but could not be acquired in time")
            raise
        if self.world.maybe(0.1):  # and hold it until the thread ends
            self.world.ledger.enter(name, self.thread, most)
            return
        async with self.inside(held, name, most):
            for _ in range(self.chance.choice([0, 1, 1, 2])):
                await self.step("send", "call", "sleep", "hold", "give_way", "receive", "crash_or_not")

    @asynccontextmanager
    async def inside(self, held: Any, name: str, most: int = 1) -> AsyncIterator[None]:
        """Release `held` however the body ends, unless the kernel abandons the thread."""
        ledger, me = self.world.ledger, self.thread
        ledger.enter(name, me, most)
        try:
            yield
        except GeneratorExit:
            ledger.leave(name, me)
            raise
        except BaseException:
            ledger.leave(name, me)
            await held.release()
            raise
        ledger.leave(name, me)
        await held.release()

    async def condition(self) -> None:
        condition = self.ctx.condition("condition")
        await condition.acquire(self.world.patience())
        async with self.inside(condition, "condition"):
            if self.world.maybe(0.6):
                await self.wait_for_notice(condition)
            else:
                await (condition.notify() if self.world.maybe(0.7) else condition.notify_all())

    async def wait_for_notice(self, condition: Condition) -> None:
        ledger, me = self.world.ledger, self.thread
        ledger.leave("condition", me)
        try:
            await condition.wait(self.world.patience())
        except GeneratorExit:  # the kernel abandoned the thread, which lacks the lock
            raise
        except BaseException:
            ledger.enter("condition", me, 1)
            raise
        ledger.enter("condition", me, 1)

    async def barrier(self) -> None:
        parties = self.chance.choice([2, 3])
        name = f"barrier of {parties}"
        patience = self.world.patience()
        async with self.limit(patience):
            last = await self.ctx.barrier(name, parties).wait(patience)
        if last and self.world.in_use(name):
            self.world.problem(f"some still wait at the barrier that {self.thread} opened")

    async def event(self) -> None:
        event, patience = self.ctx.event("event"), self.world.patience()
        async with self.limit(patience):
            steps: list[Callable[[], Awaitable[None]]] = [event.set, event.clear, lambda: event.wait(patience)]
            await self.chance.choice(steps)()

    async def release_what_is_not_held(self) -> None:
        try:
            await self.ctx.lock("nobody's").release()
        except NotHeld:
            return
        self.world.problem("a lock that nobody held was released")
