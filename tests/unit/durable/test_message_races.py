"""Races of the messages of durable agents: the daemon dies between two steps, or another message arrives first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import apsw
import msgspec
import pytest

from ipc.errors import NotACall, TimedOut
from ipc.messages import Message
from ipc.syscalls import Resume, Send, Suspend
from kernel.durable import timeouts
from kernel.journal.settings import FILE
from llmosd.context import Context
from tests.support.durable_world import UNTIL, World, waits

pytestmark = pytest.mark.real_time


async def test_what_is_said_anew_before_a_checkpoint_comes_though_more_was_said_after_it(world: World) -> None:
    async def desk(ctx: Context) -> list[str]:
        await ctx.register("desk")
        seen = []
        while True:
            message = await ctx.receive()
            if message.type == "enough":
                return seen
            seen.append(message.body)
            if message.type == "ask":
                await ctx.reply(message, "answer")

    async def looper(ctx: Context) -> list[Any]:
        await ctx.send("desk", "begin")
        await ctx.call("desk", "question", type="ask")
        state = await ctx.checkpoint(0)
        await ctx.send("desk", f"after {state}")
        await ctx.call("desk", f"question after {state}", type="ask")
        await ctx.receive()
        await ctx.send("desk", None, type="enough")
        return ["done"]

    world.agent(desk)
    world.agent(looper)
    async with world.life() as life:
        listening = await life.submit("desk")
        await life.until(lambda: life.system.names)
        task = await life.submit("looper")
        pid = max(process.pid for process in life.system.table.alive.values())
        await life.until(waits(life, 6))
        await life.rows("SELECT 1")
        folder = life.folder
    for count in (4, 2):  # the next run makes the calls again, and the run after that replays them
        async with world.life(folder) as life:
            await life.until(waits(life, count))
            await life.rows("SELECT 1")
    async with world.life(folder) as life:
        await life.system.call(Send(pid, "go"))
        assert await life.result(task) == ["done"]
        once = ["begin", "question"]
        assert await life.result(listening) == [*once, "after 0", "question after 0", *once]


async def test_a_call_that_was_not_answered_before_a_checkpoint_is_answered_after_it(world: World) -> None:
    async def server(ctx: Context) -> str:
        asked = await ctx.checkpoint(None)
        if asked is None:
            question = await ctx.receive(type="ask")
            asked = await ctx.checkpoint([question.id, question.sender])
        await ctx.receive(type="go")
        number, sender = asked
        await ctx.reply(Message(number, "", sender, ctx.pid, 0, number, None, None), "late")
        with pytest.raises(NotACall):
            await ctx.reply(Message(number, "", sender, ctx.pid, 0, number, None, None), "twice")
        await ctx.receive(type="go")
        return "done"

    async def caller(ctx: Context, pid: int) -> Any:
        return await ctx.call(pid, "question", type="ask")

    program = world.agent(caller)
    world.agent(server)
    async with world.life() as life:
        serving = await life.submit("server")
        (process,) = (one for one in life.system.table.alive.values() if one.program == "server")
        calling = await life.submit(program, pid=process.pid)
        await life.until(waits(life, 2))
        await life.rows("SELECT 1")
        (asking,) = (one.pid for one in life.system.table.alive.values() if one.program == program)
        for pid in (process.pid, asking):  # so that the next run answers the call before it is repeated
            await life.system.call(Suspend(pid))
        await life.system.call(Send(process.pid, None, type="go"))
        folder = life.folder
    for _ in range(2):  # the first run makes the reply, and the second replays it
        async with world.life(folder) as life:
            await life.until(lambda: asking in life.system.table.alive)
            await life.system.call(Resume(process.pid))
            await life.until(waits(life, 1))
            await life.rows("SELECT 1")
    async with world.life(folder) as life:
        await life.system.call(Resume(asking))
        await life.system.call(Send(process.pid, None, type="go"))
        assert await life.result(calling) == "late"
        assert await life.result(serving) == "done"


async def test_a_reply_to_who_gave_up_in_an_earlier_life_is_a_dead_letter_too(world: World) -> None:
    async def slow(ctx: Context) -> None:
        questions = [await ctx.receive(type="ask") for _ in range(2)]
        await ctx.receive(type="go")
        for question in questions:
            await ctx.reply(question, "late")
        await ctx.receive()

    async def hasty(ctx: Context, pid: int) -> None:
        with pytest.raises(TimedOut):
            await ctx.call(pid, "question", type="ask", timeout=0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await ctx.call(pid, "question", type="ask")
        await ctx.receive()

    world.agent(slow)
    world.agent(hasty)
    async with world.life() as life:
        await life.submit("slow")
        (process,) = (one for one in life.system.table.alive.values() if one.program == "slow")
        await life.submit("hasty", pid=process.pid)
        await life.until(waits(life, 4))
        await life.rows("SELECT 1")
        folder = life.folder
    async with world.life(folder) as life:
        await life.until(waits(life, 2))
        await life.system.call(Send(process.pid, None, type="go"))
        await life.until(waits(life, 3))
        assert life.system.kernel.messaging.dead_letters.counts["the caller no longer waits"] == 2
        assert await life.rows("SELECT * FROM replies") == []


async def test_nothing_is_left_of_senders_that_have_ended(world: World) -> None:
    async def client(ctx: Context, pid: int) -> None:
        await ctx.send(pid, "hello")
        await ctx.call(pid, "question")

    async def parent(ctx: Context, pid: int) -> None:
        for _ in range(2):
            await ctx.wait(await ctx.spawn("client", {"pid": pid}))
        await ctx.send(pid, "hello")
        await ctx.receive()

    async def server(ctx: Context) -> None:
        while True:
            message = await ctx.receive()
            if message.correlation:
                await ctx.reply(message, "answer")

    world.agent(client)
    world.agent(parent)
    world.agent(server)
    async with world.life() as life:
        await life.submit("server")
        (serving,) = (one for one in life.system.table.alive.values() if one.program == "server")
        task = await life.submit("parent", pid=serving.pid)
        await life.run("client", pid=serving.pid)
        await life.until(waits(life, 9))
        (pid,) = (one.pid for one in life.system.table.alive.values() if one.program == "parent")
        assert await life.rows("SELECT pid, sender FROM delivered") == [(serving.pid, pid)]
        assert serving.durable is not None
        assert list(serving.durable.delivered) == [pid]
        folder = life.folder
    async with world.life(folder) as life:
        await life.until(lambda: pid in life.system.table.alive)
        await life.system.call(Send(pid, None))
        await life.result(task)
        history = life.system.table.alive[serving.pid].durable
        assert history is not None
        assert history.delivered == {}
        assert life.system.kernel.durability is not None
        assert life.system.kernel.durability.processes._messages._recipients == {}
        assert await life.rows("SELECT * FROM delivered") == []


ANSWERS: dict[str, Callable[[Context, int], Any]] = {
    "receive": lambda ctx, pid: ctx.receive(type="news", timeout=3600.0),
    "select": lambda ctx, pid: ctx.receive(where=lambda message: message.type == "news", timeout=3600.0),
    "call": lambda ctx, pid: ctx.call(pid, "question", timeout=3600.0),
    "wait": lambda ctx, pid: ctx.wait(pid, timeout=3600.0),
    "watch": lambda ctx, pid: ctx.shared("news").watch(0, timeout=3600.0),
}


@pytest.mark.parametrize("way", ANSWERS)
async def test_what_came_in_time_is_taken_though_the_time_is_over_by_now(
    world: World, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(timeouts, "PERSIST_AFTER", 0.001)

    async def child(ctx: Context, parent: int) -> str:
        await ctx.receive(type="go")
        if way == "call":
            await ctx.reply(await ctx.receive(), "in time")
        if way in ("receive", "select"):
            await ctx.send(parent, "in time", type="news")
        if way == "watch":
            await ctx.shared("news", durable=True).set("in time")
        if way != "wait":
            await ctx.receive(type="stay")
        return "in time"

    async def waiter(ctx: Context) -> str:
        answer = await ANSWERS[way](ctx, await ctx.spawn("child", {"parent": ctx.pid}))
        return str(getattr(answer, "body", getattr(answer, "value", answer)))

    world.agent(child)
    program = world.agent(waiter)
    done = {"receive": "messages", "select": "messages", "call": "replies", "watch": "regions", "wait": "processes"}
    async with world.life() as life:
        task = await life.submit(program)
        while not await life.rows(f"SELECT 1 FROM calls WHERE {UNTIL}"):
            await asyncio.sleep(0.001)
        pids = {one.program: one.pid for one in life.system.table.alive.values()}
        await life.system.call(Suspend(pids["waiter"]))
        await life.system.call(Send(pids["child"], None, type="go"))
        there = f"SELECT 1 FROM {done[way]}" + (" WHERE status NOT NULL" if way == "wait" else "")
        while not await life.rows(there):
            await asyncio.sleep(0.001)
        folder = life.folder
    with apsw.Connection(str(folder / FILE)) as db:
        over = msgspec.msgpack.encode([3, time.time() - 1.0])
        db.execute(f"UPDATE calls SET outcome = ? WHERE {UNTIL}", (over,))
    async with world.life(folder) as life:
        await life.until(lambda: pids["waiter"] in life.system.table.alive)
        await life.system.call(Resume(pids["waiter"]))
        assert await life.result(task) == "in time"
