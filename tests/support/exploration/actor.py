"""An actor: an agent that chooses each of its steps by the dice of its world.

The base class of the actors in `messages`, `locks`, `lives` and `work`, whose methods are the steps. An `LlmosError` is
an answer like any other; an error that is neither one of these nor raised on purpose is a problem.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from ipc.errors import LlmosError
from ipc.messages import Message
from kernel.core.process import Thread
from llmosd.context import Context
from tests.support.exploration.world import World

MOST_THREADS = 6  # of one process


class Crash(Exception):
    """Raised by an actor on purpose, as agents fail."""


class Actor:
    """One process. Its threads share the calls it has to answer, its monitors and its subscriptions."""

    def __init__(self, world: World, ctx: Context, kinds: list[str], shares: list[int]) -> None:
        self.world = world
        self.chance = world.chance
        self.ctx = ctx
        self.owes: list[Message] = []
        self.refs: list[int] = []
        self.topics: list[str] = []
        self.workers: list[asyncio.Future[Any]] = []
        self._kinds, self._shares = kinds, shares  # of steps; the shares are cumulative

    async def live(self, steps: int) -> None:
        for _ in range(steps):
            await self.world.playing.wait()
            self.world.steps -= 1
            await self.step(*self.chance.choices(self._kinds, cum_weights=self._shares))

    async def step(self, *kinds: str) -> None:
        """Take a step of one of these kinds."""
        world, thread = self.world, self.thread
        kind = self.chance.choice(kinds)
        me = f"{self.ctx.pid}/{thread.path} {kind}"
        world.trace(me)
        if thread.timers:
            world.problem(f"{me} begins with {thread.timers} timers set")
        holds = {held.name for held in cast("Any", thread.holds) or ()}
        if holds != (entered := world.ledger.held_by(thread)):
            world.problem(f"{me} begins holding {holds}, but has entered {entered}")
        try:
            await getattr(self, kind)()
        except LlmosError as error:
            world.trace(me, "->", type(error).__name__, error.message[:90])
        except asyncio.CancelledError:
            if not world.was_struck(thread):
                world.trace(me, "-> gone")
                raise
            world.trace(me, "-> struck")
        except (Crash, TimeoutError):
            world.trace(me, "-> gone")
            raise
        except GeneratorExit:  # the kernel abandoned the thread
            raise
        except BaseException as error:
            world.problem(f"{me} raised {error!r}")
            raise
        else:
            world.trace(me, "-> done")

    @asynccontextmanager
    async def limit(self, timeout: float | None) -> AsyncIterator[None]:
        """Note that the body must end within `timeout` seconds: the invariants report a body that does not."""
        promise = f"{self.ctx.pid}/{self.thread.path}, within {timeout} s from {self.world.loop.time()} on"
        promises = self.world.ledger.promises
        if timeout is not None:
            promises.add(promise)
        try:
            yield
        finally:
            promises.discard(promise)

    @property
    def thread(self) -> Thread:
        return cast("Thread", asyncio.current_task())

    @property
    def may_start_threads(self) -> bool:
        return len(self.ctx._process.threads) < MOST_THREADS

    def anyone(self) -> int:
        """The pid of another process, or now and then its own."""
        return self.world.anyone(but=0 if self.world.maybe(0.05) else self.ctx.pid)

    def addressee(self) -> int | str:
        return self.chance.choice("ab") if self.world.maybe(0.15) else self.anyone()
