"""Cases of growth for messages and calls, added to `CASES` when this module is imported.

The bench and the unit test of growth use them. A case never measures anything itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from ipc.errors import LlmosError
from llmosd.context import Context
from tests.support.growth_cases import CASES, Watch, case, idle
from tests.support.system import System

__all__ = ["CASES"]


@case("messages in one mailbox")
async def messages(system: System, n: int, watch: Watch) -> None:
    async def reader(ctx: Context) -> None:
        await ctx.sleep(5)
        with watch:
            for _ in range(n):
                await ctx.receive()

    process = system.spawn(reader)
    process.open_mailbox().capacity = n

    async def writer(ctx: Context) -> None:
        with watch:
            for number in range(n):
                await ctx.send(process.pid, number, priority=number % 3)

    await system.run(writer)
    await system.result(process)


@case("messages chosen from one mailbox")
async def chosen(system: System, n: int, watch: Watch) -> None:
    async def reader(ctx: Context) -> None:
        await ctx.sleep(5)
        with watch:
            for number in range(n, 0, -1):
                await ctx.receive(correlation=number)

    process = system.spawn(reader)
    process.open_mailbox().capacity = n

    async def writer(ctx: Context) -> None:
        for number in range(1, n + 1):
            await ctx.send(process.pid, number, correlation=number)

    await system.run(writer)
    await system.result(process)


@case("messages that expire")
async def expiring(system: System, n: int, watch: Watch) -> None:
    process = system.spawn(idle)
    process.open_mailbox().capacity = n

    async def writer(ctx: Context) -> None:
        with watch:
            for number in range(n):
                await ctx.send(process.pid, number, lifetime=1 + number % 5)
            await ctx.sleep(10)
            await ctx.send(process.pid, 1)

    await system.run(writer)


@case("senders that wait for room")
async def senders(system: System, n: int, watch: Watch) -> None:
    async def reader(ctx: Context) -> None:
        await ctx.sleep(5)
        for _ in range(n):
            await ctx.receive()

    process = system.spawn(reader)
    process.open_mailbox().capacity = 1

    async def writer(ctx: Context) -> None:
        await ctx.send(process.pid, 1)

    name = system.program(writer)
    with watch:
        for _ in range(n):
            system.spawn(name)
        await system.result(process)


@case("threads of one agent that choose messages")
async def choosers(system: System, n: int, watch: Watch) -> None:
    async def reader(ctx: Context) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(1, n + 1):
                group.create_task(ctx.receive(correlation=number))

    process = system.spawn(reader)
    process.open_mailbox().capacity = n
    await system.turns(20)

    async def writer(ctx: Context) -> None:
        for number in range(n, 0, -1):
            await ctx.send(process.pid, number, correlation=number)

    with watch:
        await system.run(writer)
        await system.result(process)


@case("mailboxes")
async def mailboxes(system: System, n: int, watch: Watch) -> None:
    async def reader(ctx: Context) -> None:
        await ctx.receive()

    name = system.program(reader)
    pids = [system.spawn(name).pid for _ in range(n)]

    async def writer(ctx: Context) -> None:
        for pid in pids:
            await ctx.send(pid, 1)

    with watch:
        await system.run(writer)
        await asyncio.sleep(1)


async def serve(system: System, n: int, watch: Watch, work: Callable[[Context], Awaitable[Any]]) -> None:
    """`n` agents call one server, which answers each call in a thread of its own."""

    async def server(ctx: Context) -> None:
        async def answer(message: Any) -> None:
            await work(ctx)
            await ctx.reply(message, 1)

        async with asyncio.TaskGroup() as group:
            for _ in range(n):
                group.create_task(answer(await ctx.receive()))

    process = system.spawn(server)
    process.open_mailbox().capacity = n

    async def client(ctx: Context) -> None:
        await ctx.call(process.pid, 1)

    name = system.program(client)
    with watch:
        clients = [system.spawn(name) for _ in range(n)]
        await system.result(process)
        await asyncio.sleep(1)
    assert all(one.ended for one in clients)


@case("calls of one server")
async def calls(system: System, n: int, watch: Watch) -> None:
    await serve(system, n, watch, lambda ctx: ctx.sleep(1))


@case("calls of one server that calls a model")
async def model_server(system: System, n: int, watch: Watch) -> None:
    await serve(system, n, watch, lambda ctx: ctx.generate("a", max_tokens=1))


@case("calls of one server that calls another")
async def second_server(system: System, n: int, watch: Watch) -> None:
    backend = system.spawn(idle)
    backend.open_mailbox().capacity = n

    async def call_on(ctx: Context) -> None:
        with contextlib.suppress(LlmosError):
            await ctx.call(backend.pid, 1, timeout=100)

    await serve(system, n, watch, call_on)
