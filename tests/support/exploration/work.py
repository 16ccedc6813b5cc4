"""Steps of an actor by itself: generate, emit, sleep, and steps within steps.

Part of `cast.Player`.
"""

from __future__ import annotations

import asyncio

from tests.support.exploration.actor import Actor

SHARES = {"generate": 8, "emit": 4, "sleep": 5, "give_way": 8, "stubborn": 1, "gather": 3, "limited": 5}


class Work(Actor):
    """Generates, emits, sleeps, and nests steps."""

    async def generate(self) -> None:
        tokens = self.chance.randrange(1, 8)
        text = await self.ctx.generate("one two", max_tokens=tokens)
        if len(text.split()) != tokens:
            self.world.problem(f"{tokens} tokens were {text!r}")

    async def emit(self) -> None:
        for _ in range(self.chance.choice([1, 3])):
            await self.ctx.emit(self.ctx.pid)
        self.ctx.log("emitted")

    async def sleep(self) -> None:
        await self.ctx.sleep(self.world.time())

    async def give_way(self) -> None:
        await asyncio.sleep(0)

    async def stubborn(self) -> None:
        """Ignore being cancelled for longer than the kernel tolerates."""
        for _ in range(2):
            future: asyncio.Future[None] = self.world.loop.create_future()
            self.world.loop.call_later(self.chance.choice([1, 5]), _finish, future)
            try:
                await future
            except asyncio.CancelledError:
                if self.world.maybe(0.3):
                    raise

    async def gather(self) -> None:
        if self.may_start_threads:
            steps = [self.step("call", "receive", "sleep", "send", "generate", "hold") for _ in range(2)]
            await asyncio.gather(*steps, return_exceptions=True)

    async def limited(self) -> None:
        """Take a step within a timeout of asyncio."""
        try:
            async with asyncio.timeout(self.world.time()):
                await self.step("call", "receive", "hold", "condition", "generate", "wait", "send")
        except TimeoutError:
            return


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
