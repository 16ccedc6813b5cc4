"""Messages between processes: how and in which order they are delivered, and the dead letters that others become."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from ipc.errors import (
    BadArguments,
    BadMessage,
    NotACall,
    NotEncodable,
    UnknownProcess,
)
from ipc.syscalls import Call, DeadLetters, PeekMailbox, Reply, Send, Subscribe
from kernel.core.mailbox import Mailbox
from llmosd.context import Context
from tests.support.agents import echo, forever, idle
from tests.support.system import System


async def test_a_message_says_who_sent_it_and_what_it_is(system: System) -> None:
    async def receiver(ctx: Context) -> list[Any]:
        first, second = await ctx.receive(), await ctx.receive()
        return [first.sender, first.type, first.priority, first.body, second.body, first.id < second.id]

    target = system.spawn(receiver)
    await system.call(Send(target.pid, "a", "greeting", 3))
    await system.call(Send(target.pid, None))
    assert await system.result(target) == [system.client.pid, "greeting", 3, "a", None, True]


async def test_a_message_sent_before_the_first_step_is_there_when_the_agent_looks(system: System) -> None:
    async def agent(ctx: Context) -> Any:
        return (await ctx.receive(timeout=0)).body

    target = system.spawn(agent)
    await system.call(Send(target.pid, "early"))
    assert await system.result(target) == "early"


@pytest.mark.parametrize("undecodable", [msgspec.Raw(b"\xa1\xff"), msgspec.Raw(b"\x81\x81\x00\x00\x00")])
async def test_a_body_that_cannot_be_decoded_is_nothing_to_its_receiver(system: System, undecodable: Any) -> None:
    """A client can send one: the kernel forwards a body from a socket without decoding it."""
    target = system.spawn(echo)
    await system.call(Send(target.pid, undecodable))
    with pytest.raises(BadMessage, match="cannot be decoded"):
        await system.call(Call(target.pid, undecodable))
    assert await system.call(Call(target.pid, "next")) == "next"
    assert [one.reason for one in await system.call(DeadLetters())] == ["its body cannot be decoded"] * 2
    assert target.mailbox.taken == 0
    assert target.pending_calls == {}


async def test_a_drain_ends_although_senders_wait_for_room_and_messages_were_dropped(system: System) -> None:
    """A stop waits for processes only. It counts no messages, so no count has to come back to zero."""

    async def sender(ctx: Context, to: int) -> None:
        await ctx.send(to, "void", lifetime=0)
        await ctx.publish("topic", "dropped")
        await ctx.send(to, "waits for ever")

    target = system.spawn(idle)
    target.open_mailbox().capacity = 1
    await system.call(Subscribe("topic"), target)
    await system.call(Send(target.pid, "in the way"))
    program = system.program(sender)
    senders = [system.spawn(program, to=target.pid) for _ in range(3)]
    await system.turns()
    assert [str(one.state()[1]) for one in senders] == [f"mailbox of {target.pid}"] * 3
    await system.kernel.drain(1)
    assert all(one.ended for one in (target, *senders))
    assert target.mailbox.taken == 0


async def test_unknown_recipients_are_refused_at_once(system: System) -> None:
    for call in (Send(77, None), Call(77, None)):
        with pytest.raises(UnknownProcess, match="77 never existed"):
            await system.call(call)
    with pytest.raises(NotACall):
        await system.call(Reply(77, 1, None))


async def test_a_process_can_send_to_itself(system: System) -> None:
    async def lonely(ctx: Context) -> Any:
        await ctx.send(ctx.pid, "note")
        return (await ctx.receive()).body

    assert await system.run(lonely) == "note"


async def test_bodies_are_not_shared(system: System) -> None:
    async def server(ctx: Context) -> list[Any]:
        message = await ctx.receive()
        message.body["list"].append("server")
        reply = {"list": message.body["list"]}
        await ctx.reply(message, reply)
        reply["list"].append("after the reply")
        return message.body["list"]

    async def client(ctx: Context, to: int) -> list[Any]:
        body = {"list": ["client"]}
        waiting = asyncio.create_task(ctx.call(to, body))
        await asyncio.sleep(0)
        body["list"].append("after the call")
        answer = await waiting
        answer["list"].append("mine")
        return [body["list"], answer["list"]]

    target = system.spawn(server)
    ours, theirs = await system.run(client, to=target.pid)
    assert ours == ["client", "after the call"]
    assert theirs == ["client", "server", "mine"]
    assert await system.result(target) == ["client", "server", "after the reply"]


async def test_a_body_that_cannot_travel_is_refused_and_nothing_is_sent(system: System) -> None:
    target = system.spawn(idle)

    async def sender(ctx: Context, to: int) -> None:
        await ctx.send(to, object())

    with pytest.raises(NotEncodable):
        await system.run(sender, to=target.pid)
    assert target.mailbox is None or target.mailbox.count == 0


async def test_what_was_sent_and_received_is_counted(system: System) -> None:
    server = system.spawn(echo)

    async def client(ctx: Context, to: int) -> None:
        await ctx.call(to, 1)

    status = await system.status(system.spawn(client, to=server.pid))
    assert (status.usage.messages_sent, status.usage.messages_received) == (1, 1)
    assert (server.messages_sent, server.messages_received) == (1, 1)


async def test_one_agent_takes_one_message_at_a_time_in_order(system: System) -> None:
    async def worker(ctx: Context, n: int) -> list[int]:
        done = []
        for _ in range(n):
            message = await ctx.receive()
            await ctx.sleep(n - message.body)  # the first take longest
            done.append(message.body)
        return done

    target = system.spawn(worker, n=10)
    for n in range(10):
        await system.call(Send(target.pid, n))
    assert await system.result(target) == list(range(10))


async def test_a_stray_wake_up_does_not_overfill_a_mailbox(system: System) -> None:
    # The stream may wake a thread whose emit was cancelled, and which waits for something else by then.
    recorder = system.recorder(credit=0)
    target = system.spawn(idle)
    target.mailbox = Mailbox(1)
    await system.call(Send(target.pid, "fills it"))

    async def agent(ctx: Context, to: int) -> None:
        try:
            async with asyncio.timeout(1):
                while True:
                    await ctx.emit("x")
        except TimeoutError:
            pass
        await ctx.send(to, "in line")

    process = system.spawn(agent, to=target.pid, stream=recorder.stream)
    await asyncio.sleep(2)
    recorder.stream.grant(1000)
    await system.turns()
    assert target.mailbox.count == 1
    assert not process.ended


async def test_arguments_of_spawn_that_cannot_travel_are_refused(system: System) -> None:
    async def child(ctx: Context, value: Any) -> None:
        pass

    async def parent(ctx: Context) -> None:
        await ctx.spawn("child", {"value": object()})

    system.program(child)
    with pytest.raises((NotEncodable, BadArguments)):
        await system.run(parent)


async def test_a_full_mailbox_makes_room_by_dropping_what_is_void(system: System) -> None:
    target = system.spawn(forever)
    target.open_mailbox().capacity = 2
    for _ in range(2):
        await system.call(Send(target.pid, "void", lifetime=1))
    system.loop.call_later(2, lambda: None)
    await asyncio.sleep(2)
    await system.call(Send(target.pid, "fresh", wait=False))
    assert [heading.size for heading in await system.call(PeekMailbox(target.pid))] == [5]
    assert [letter.reason for letter in await system.call(DeadLetters())] == ["its deadline passed"] * 2


async def test_the_mailbox_is_shown_in_the_order_of_receipt(system: System) -> None:
    target = system.spawn(forever)
    for priority in (0, 5, -5, 5):
        await system.call(Send(target.pid, "body", priority=priority, type=f"p{priority}"))
    shown = await system.call(PeekMailbox(target.pid, 3))
    assert [(one.type, one.size) for one in shown] == [("p5", 4), ("p5", 4), ("p0", 4)]


async def test_control_messages_pass_a_full_mailbox_and_come_first(system: System) -> None:
    async def agent(ctx: Context) -> list[Any]:
        await ctx.sleep(1)
        return [(message.type, message.sender) for message in [await ctx.receive() for _ in range(2)]]

    target = system.spawn(agent)
    target.open_mailbox().capacity = 1
    await system.call(Send(target.pid, None, priority=20, type="urgent"))
    system.kernel.messaging.notify(target, "down", 7)
    assert await system.result(target) == [["down", 0], ["urgent", system.client.pid]]


async def test_a_process_called_client_is_no_client(system: System) -> None:
    async def client(ctx: Context) -> Any:
        return (await ctx.receive()).body

    target = system.spawn(client)
    await system.call(Send(target.pid, {"decoded": True}))
    assert await system.result(target) == {"decoded": True}
