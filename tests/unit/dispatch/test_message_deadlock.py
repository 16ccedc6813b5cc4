"""Deadlocks of calls and full mailboxes: a knot is found at the moment it closes, and nothing else is one."""

from __future__ import annotations

import asyncio
from typing import Any

from ipc.errors import DeadlockDetected, TimedOut, UnknownProcess
from kernel.core.mailbox import CAPACITY
from llmosd.context import Context
from tests.support.agents import forever
from tests.support.growth import Counted, exponent
from tests.support.system import System


async def test_two_that_call_each_other_are_a_deadlock(system):
    pids: list[int] = []

    async def caller(ctx: Context, index: int) -> Any:
        await ctx.sleep(index)
        try:
            return await ctx.call(pids[1 - index], "hello")
        except DeadlockDetected as knot:
            message = await ctx.receive()
            await ctx.reply(message, "found")
            return knot.data["size"], [row["waits_for"] for row in knot.data["knot"]]

    system.program(caller)
    first, second = system.spawn("caller", 0), system.spawn("caller", 1)
    pids += [first.pid, second.pid]
    assert await system.result(first) == "found"
    assert await system.result(second) == [2, [f"reply of {first.pid}", f"reply of {second.pid}"]]


async def test_a_call_of_a_process_with_another_thread_that_serves_is_no_deadlock(system):
    pids: list[int] = []

    async def peer(ctx: Context, index: int) -> str:
        async def serve() -> None:
            while True:
                message = await ctx.receive()
                await ctx.reply(message, "served")

        ctx.start_thread(serve())
        await ctx.sleep(1)
        answer: str = await ctx.call(pids[1 - index], "hello")
        await ctx.sleep(1)
        return answer

    system.program(peer)
    peers = [system.spawn("peer", index) for index in range(2)]
    pids += [peer.pid for peer in peers]
    assert [await system.result(peer) for peer in peers] == ["served", "served"]


async def test_a_call_with_a_time_limit_is_none(system):
    pids: list[int] = []

    async def caller(ctx: Context, index: int) -> str:
        await ctx.sleep(index)
        try:
            await ctx.call(pids[1 - index], "hello", timeout=5 + index)
        except TimedOut:
            await ctx.sleep(10)  # so that the other one does not get the news of this one's end first
            return "timed out"
        return "answered"

    system.program(caller)
    callers = [system.spawn("caller", index) for index in range(2)]
    pids += [caller.pid for caller in callers]
    assert [await system.result(caller) for caller in callers] == ["timed out", "timed out"]


async def test_senders_to_each_others_full_mailboxes_are_a_deadlock(system):
    pids: list[int] = []

    async def flood(ctx: Context, index: int) -> int:
        sent = 0
        try:
            while True:
                await ctx.send(pids[1 - index], sent)
                sent += 1
        except DeadlockDetected:
            return sent
        except UnknownProcess:
            return -1

    system.program(flood)
    floods = [system.spawn("flood", index) for index in range(2)]
    pids += [flood.pid for flood in floods]
    results = [await system.result(flood) for flood in floods]
    assert sorted(results) == [-1, CAPACITY]


async def test_the_search_does_not_visit_all_threads_of_a_server(system: System) -> None:
    async def trial(count: int) -> int:
        async def server(ctx: Context, to: int) -> None:
            async with asyncio.TaskGroup() as group:  # its first thread waits for the others, and not for messages
                for _ in range(count):
                    group.create_task(ctx.call(to, "do"))

        async def client(ctx: Context, to: int) -> None:
            await ctx.call(to, "do")

        server.__name__, client.__name__ = f"server{count}", f"client{count}"
        backend = system.spawn(forever)
        front = system.spawn(server, to=backend.pid)
        for process in (backend, front):
            process.open_mailbox().capacity = count
        name = system.program(client)
        await system.turns(2 * count)
        with Counted("dispatch/deadlock.py") as counted:
            for _ in range(count):
                system.spawn(name, to=front.pid)
            await system.turns(count)
        return counted.lines

    assert await exponent(trial, 50, 200) < 1.2
