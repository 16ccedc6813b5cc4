"""Messages of durable agents: each arrives once and in order, and is answered once, even if either side dies."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from ipc.errors import TimedOut, UnknownName
from ipc.syscalls import Call, Send
from llmosd.context import Context
from tests.support.durable_world import Life, World, everywhere, note, nothing

pytestmark = pytest.mark.real_time


async def test_messages_between_durable_agents_come_once_and_in_order(world: World) -> None:
    async def reader(ctx: Context) -> list[Any]:
        bodies: list[Any] = []
        while len(bodies) < 9:
            message = await ctx.receive()
            bodies.append([message.id, message.body])
        return bodies

    async def writer(ctx: Context) -> list[Any]:
        pid = await ctx.spawn("reader", name="library")
        sent = [await ctx.send("library" if n % 2 else pid, {"number": n}) for n in range(9)]
        read = await ctx.wait(pid)
        assert [message for message, _ in read] == sent
        return [body["number"] for _, body in read]

    world.agent(reader)
    assert await everywhere(world, world.agent(writer), nothing) == list(range(9))


async def test_a_call_is_answered_once_though_either_side_dies(world: World) -> None:
    world.tool(note(world))

    async def server(ctx: Context) -> int:
        total = 0
        for _ in range(4):
            message = await ctx.receive()
            total += message.body
            await ctx.tool("note", line=f"added {message.body}")
            await ctx.reply(message, total)
        return total

    async def caller(ctx: Context) -> list[Any]:
        pid = await ctx.spawn("server")
        totals = [await ctx.call(pid, number) for number in (1, 20, 300, 4000)]
        return [totals, await ctx.wait(pid)]

    world.agent(server)

    def once(life: Life, result: Any) -> None:
        assert sorted(world.lines.values()) == ["added 1", "added 20", "added 300", "added 4000"]

    first = await everywhere(world, world.agent(caller), once)
    assert first == [[1, 21, 321, 4321], 4321]


async def test_what_is_published_comes_once_to_durable_subscribers(world: World) -> None:
    async def listener(ctx: Context) -> list[Any]:
        await ctx.subscribe("news.*")
        await ctx.send("paper", "ready")
        return [(await ctx.receive(timeout=30)).body for _ in range(3)]

    async def paper(ctx: Context) -> list[Any]:
        await ctx.register("paper")
        pids = [await ctx.spawn("listener") for _ in range(2)]
        for _ in pids:
            await ctx.receive()
        counts = [await ctx.publish("news.today", number) for number in range(3)]
        return [counts, [await ctx.wait(pid) for pid in pids]]

    world.agent(listener)
    assert await everywhere(world, world.agent(paper), nothing) == [[2, 2, 2], [[0, 1, 2], [0, 1, 2]]]


async def test_what_clients_sent_waits_in_its_order_and_unread_messages_end_as_dead_letters(world: World) -> None:
    async def reader(ctx: Context) -> list[Any]:
        await ctx.register("reader")
        first = [(await ctx.receive()).body for _ in range(2)]
        await ctx.receive(type="go")
        return first + [(await ctx.receive()).body for _ in range(2)]

    program = world.agent(reader)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: "reader" in life.system.names)
        for number in range(6):
            await life.system.call(Send("reader", [number]))
        folder = life.folder
    async with world.life(folder) as life:
        await life.system.call(Send("reader", None, type="go"))  # by name, even before the agent has restarted
        assert await life.result(task) == [[0], [1], [2], [3]]
        assert await life.rows("SELECT * FROM messages") == []
        assert life.system.kernel.messaging.dead_letters.counts["the recipient ended"] == 2
        with pytest.raises(UnknownName):
            await life.system.call(Send("reader", 7))


async def test_a_reply_to_a_client_that_is_gone_is_a_dead_letter_and_no_error(world: World) -> None:
    async def server(ctx: Context) -> str:
        await ctx.register("server")
        first = await ctx.receive()
        await ctx.receive(type="go")
        await ctx.reply(first, "late")
        second = await ctx.receive()
        await ctx.reply(second, "in time")
        return "done"

    program = world.agent(server)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: "server" in life.system.names)
        life.system.thread(life.system.kernel.gate.enter(life.system.client, Call("server", 1)))
        await life.until(lambda: life.calls.get("Receive", 0) == 2)
        await life.rows("SELECT 1")
        folder = life.folder
    async with world.life(folder) as life:
        await life.system.call(Send("server", None, type="go"))
        assert await life.system.call(Call("server", 2)) == "in time"
        assert await life.result(task) == "done"
        assert life.system.kernel.messaging.dead_letters.counts["the caller no longer waits"] == 1


async def test_a_monitor_tells_once_and_has_the_reference_that_it_had(world: World) -> None:
    async def child(ctx: Context) -> None:
        await ctx.generate("x", max_tokens=1)
        raise ValueError("as planned")

    async def parent(ctx: Context) -> list[Any]:
        pid = await ctx.spawn("child")
        ref = await ctx.monitor(pid)
        down = await ctx.receive(type="down", correlation=ref)
        try:
            await ctx.receive(timeout=0.05)
        except TimedOut:
            return [ref, down.body["pid"] == pid, down.body["reason"], down.body["ref"]]
        raise AssertionError("the end was delivered twice")

    world.agent(child)
    ref, same, reason, reported = await everywhere(world, world.agent(parent), nothing)
    assert (same, reason, reported) == (True, "failed", ref)


async def test_who_was_monitored_and_is_gone_with_the_daemon_is_told_of(world: World) -> None:
    async def other(ctx: Context) -> None:
        await ctx.sleep(1e6)

    async def watcher(ctx: Context, pid: int) -> str:
        ref = await ctx.monitor(pid)
        await ctx.time()
        return (await ctx.receive(correlation=ref)).body["reason"]

    program = world.agent(other, durable=False)
    watching = world.agent(watcher)
    async with world.life() as life:
        process = life.system.spawn(program)
        task = await life.submit(watching, pid=process.pid)
        await life.until(lambda: life.calls.get("Receive"))
        await life.rows("SELECT 1")
        folder = life.folder
    async with world.life(folder) as life:
        assert await life.result(task) == "unknown"


class Order(msgspec.Struct, frozen=True):
    dish: str


async def test_a_declared_body_is_its_struct_at_first_and_at_a_replay(world: World) -> None:
    async def cook(ctx: Context) -> list[str]:
        orders = [(await ctx.receive()).body for _ in range(3)]
        assert all(type(order) is Order for order in orders)
        await ctx.generate("x", max_tokens=1)
        return [order.dish for order in orders]

    async def guest(ctx: Context) -> Any:
        pid = await ctx.spawn("cook")
        for dish in ("soup", "fish", "cake"):
            await ctx.send(pid, Order(dish))
        return await ctx.wait(pid)

    world.agent(cook, accepts={"Order": Order})
    assert await everywhere(world, world.agent(guest), nothing) == ["soup", "fish", "cake"]


async def test_a_reply_to_a_durable_caller_that_gave_up_is_a_dead_letter(world: World) -> None:
    async def slow(ctx: Context) -> None:
        question = await ctx.receive()
        await ctx.receive(type="go")
        await ctx.reply(question, "late")

    async def hasty(ctx: Context) -> list[Any]:
        pid = await ctx.spawn("slow")
        try:
            await ctx.call(pid, "question", timeout=0.01)
        except TimedOut:
            await ctx.send(pid, None, type="go")
        await ctx.wait(pid)
        return ["done"]

    world.agent(slow)
    program = world.agent(hasty)
    async with world.life() as life:
        assert await life.run(program) == ["done"]
        assert life.system.kernel.messaging.dead_letters.counts["the caller no longer waits"] == 1
        assert await life.rows("SELECT * FROM replies") == []


async def test_a_timeout_beside_a_message_loses_none_and_is_replayed(world: World) -> None:
    async def impatient(ctx: Context) -> list[Any]:
        seen: list[Any] = []
        while seen[-1:] != ["last"]:
            try:
                async with asyncio.timeout(await ctx.random() * 0.002):
                    seen.append((await ctx.receive()).body)
            except TimeoutError:
                seen.append(None)
        return seen

    async def sender(ctx: Context) -> list[Any]:
        pid = await ctx.spawn("impatient")
        for number in range(20):
            await ctx.send(pid, number)
        await ctx.send(pid, "last")
        return await ctx.wait(pid)

    world.agent(impatient)
    program = world.agent(sender)
    async with world.life() as life:
        world.recording = True
        task = await life.submit(program)
        bodies = [body for body in await life.result(task) if body is not None]
        world.recording = False
    assert bodies == [*range(20), "last"]
    for copy in world.copies[3 :: len(world.copies) // 6]:
        async with world.life(copy) as life:
            assert [body for body in await life.result(task) if body is not None] == bodies
