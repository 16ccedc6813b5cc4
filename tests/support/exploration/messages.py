"""Steps of actors with messages, topics and names.

Part of `cast.Player`. Each received message is checked against the ledger immediately.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ipc.errors import NotACall, TimedOut
from ipc.messages import Message
from ipc.syscalls import DOWN
from kernel.core.selector import Selector
from tests.support.exploration.actor import Actor

SHARES = {"send": 18, "receive": 12, "compete": 6, "serve": 20, "call": 12, "publish": 2, "subscribe": 3, "register": 4}


class Messages(Actor):
    """Sends, receives, calls and replies."""

    async def send(self) -> None:
        world, chance = self.world, self.chance
        number = await self.ctx.send(
            self.addressee(),
            chance.choice([f"text of {self.ctx.pid}", ["a list"], self.ctx.pid]),
            type=chance.choice("xy"),
            priority=chance.choice([0, 0, 0, 2, -3]),
            wait=world.maybe(0.8),
            lifetime=world.time() if world.maybe(0.15) else None,
        )
        world.ledger.sent.add(number)

    async def receive(self) -> None:
        where: dict[str, Any] = {}
        if self.world.maybe(0.2):
            where["type"] = self.chance.choice("xy")
        if self.world.maybe(0.1):
            where["sender"] = self.anyone()
        if self.world.maybe(0.15):
            where["where"] = self.chance.choice([_even, _failing])
        await self.take(self.world.patience(), where)

    async def take(self, timeout: float | None, where: dict[str, Any]) -> None:
        ledger, process = self.world.ledger, self.ctx._process
        # A predicate that fails cannot be tried on the rest of the mailbox.
        selection = None if where.get("where") is _failing else Selector(**where)
        try:
            async with self.limit(timeout):
                message = await self.ctx.receive(timeout=timeout, **where)
        except ZeroDivisionError:
            return
        except TimedOut:
            if selection is not None:
                ledger.nothing_for(process, selection)
            raise
        ledger.received[message.id] += 1
        if selection is not None:
            ledger.in_order(process, message, selection)
        if message.correlation == message.id and message.type != DOWN:
            self.owes.append(message)

    async def compete(self) -> None:
        """Several threads receive at the same time, each with a selector of its own."""
        if self.may_start_threads:
            await asyncio.gather(*(self.step("receive") for _ in range(3)), return_exceptions=True)

    async def serve(self) -> None:
        """Answer a call, immediately or later, and now and then twice."""
        if not self.owes:
            await self.take(self.world.time(), {})
        if not self.owes:
            return
        message = self.owes.pop(self.chance.randrange(len(self.owes)))
        with self.world.ledger.replying(message):
            await self.ctx.reply(message, ["to", message.body])
        if self.world.maybe(0.1):
            try:
                await self.ctx.reply(message, "again")
            except NotACall:
                return
            pending_calls = self.ctx._process.pending_calls
            if pending_calls is None or message.id > pending_calls.forgotten:  # else it may be a late reply
                self.world.problem(f"a second reply to {message.id} was accepted")

    async def call(self) -> None:
        question = f"question {self.chance.randrange(10**9)}"
        patience = self.world.patience()
        async with self.limit(patience):
            answer = await self.ctx.call(self.addressee(), question, patience)
        self.world.ledger.answers.discard(question)
        if answer != ["to", question]:
            self.world.problem(f"{question!r} was answered with {answer!r}")

    async def publish(self) -> None:
        topic = self.chance.choice(["news", "news.art"])
        await self.ctx.publish(topic, self.ctx.pid, priority=self.chance.choice([0, 2]))

    async def subscribe(self) -> None:
        if self.topics and self.world.maybe(0.5):
            await self.ctx.unsubscribe(self.topics.pop())
            return
        pattern = self.chance.choice(["news", "news.*", "#"])
        if pattern not in self.topics:
            self.topics.append(pattern)
            await self.ctx.subscribe(pattern)

    async def register(self) -> None:
        name = self.chance.choice("ab")
        await (self.ctx.register(name) if self.world.maybe(0.7) else self.ctx.unregister(name))


def _even(message: Message) -> bool:
    return message.id % 2 == 0


def _failing(message: Message) -> bool:
    return 1 // (message.id % 3) > 0
