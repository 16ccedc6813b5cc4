"""Messages between processes: send, receive, call and reply, and what becomes of them when somebody leaves."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
import pytest

from ipc.errors import BadArguments, BadMessage, InvalidCall, NotACall, NotEncodable, TimedOut, UnknownProcess
from ipc.syscalls import Call, DeadLetters, GetStats, Kill, Receive, Reply, Send, Subscribe
from kernel.mailbox import Mailbox
from llmosd.context import Context
from tests.support.agents import idle


async def echo(ctx: Context) -> None:
    while True:
        message = await ctx.receive()
        await ctx.reply(message, message.body)


async def dead_letters(system: Any) -> int:
    return int((await system.call(GetStats())).dead_letters)


async def test_a_call_answers_the_reply(system: Any) -> None:
    server = system.spawn(echo)

    async def client(ctx: Context, to: int) -> Any:
        return [await ctx.call(to, {"n": n}) for n in range(3)]

    assert await system.run(client, to=server.pid) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert server.owed == {}


async def test_calls_from_many_threads_get_their_own_replies(system: Any) -> None:
    async def backwards(ctx: Context) -> None:
        messages = [await ctx.receive() for _ in range(5)]
        for message in reversed(messages):
            await ctx.reply(message, message.body * 10)

    server = system.spawn(backwards)

    async def client(ctx: Context, to: int) -> list[int]:
        return await asyncio.gather(*(ctx.call(to, n) for n in range(5)))

    assert await system.run(client, to=server.pid) == [0, 10, 20, 30, 40]


async def test_a_message_says_who_sent_it_and_what_it_is(system: Any) -> None:
    async def receiver(ctx: Context) -> list[Any]:
        first, second = await ctx.receive(), await ctx.receive()
        return [first.sender, first.type, first.priority, first.body, second.body, first.id < second.id]

    target = system.spawn(receiver)
    await system.call(Send(target.pid, "a", "greeting", 3))
    await system.call(Send(target.pid, None))
    assert await system.result(target) == [system.client.pid, "greeting", 3, "a", None, True]


async def test_a_message_sent_before_the_first_step_is_there_when_the_agent_looks(system: Any) -> None:
    async def agent(ctx: Context) -> Any:
        return (await ctx.receive(timeout=0)).body

    target = system.spawn(agent)
    await system.call(Send(target.pid, "early"))
    assert await system.result(target) == "early"


async def test_a_call_times_out_on_time(system: Any) -> None:
    target = system.spawn(idle)
    before = system.loop.time()
    with pytest.raises(TimedOut) as caught:
        await system.call(Call(target.pid, "hello", 4.0))
    assert system.loop.time() - before == pytest.approx(4.0)
    assert caught.value.data == {"to": target.pid, "timeout": 4.0}
    assert list(target.owed.values()) == [None]


async def test_the_message_of_a_call_that_timed_out_is_a_dead_letter(system: Any) -> None:
    async def late_reader(ctx: Context) -> Any:
        await ctx.sleep(10)
        return (await ctx.receive()).body

    target = system.spawn(late_reader)
    with pytest.raises(TimedOut):
        await system.call(Call(target.pid, "void", 1.0))
    await system.call(Send(target.pid, "fresh"))
    assert await system.result(target) == "fresh"
    assert await dead_letters(system) == 1


async def test_a_late_reply_is_not_taken_for_the_next_call_s(system: Any) -> None:
    async def slow(ctx: Context) -> None:
        first = await ctx.receive()
        second = await ctx.receive()
        await ctx.reply(first, "late reply to the first")
        await ctx.reply(second, "reply to the second")

    server = system.spawn(slow)

    async def client(ctx: Context, to: int) -> str:
        with contextlib.suppress(TimedOut):
            await ctx.call(to, 1, timeout=1)
        return await ctx.call(to, 2)

    assert await system.run(client, to=server.pid) == "reply to the second"
    assert await dead_letters(system) == 1


async def test_replying_twice_is_an_error_of_the_replier(system: Any) -> None:
    async def eager(ctx: Context) -> str:
        message = await ctx.receive()
        await ctx.reply(message, 1)
        try:
            await ctx.reply(message, 2)
        except NotACall as error:
            return error.message
        return ""

    server = system.spawn(eager)
    assert await system.call(Call(server.pid, None)) == 1
    assert "was answered" in await system.result(server)


async def test_replying_to_a_message_that_was_no_call_is_an_error(system: Any) -> None:
    async def confused(ctx: Context) -> None:
        await ctx.reply(await ctx.receive(), "?")

    server = system.spawn(confused)
    await system.call(Send(server.pid, None))
    with pytest.raises(NotACall):
        await system.result(server)


async def test_a_reply_with_a_value_that_cannot_travel_leaves_the_call_open(system: Any) -> None:
    async def clumsy(ctx: Context) -> None:
        message = await ctx.receive()
        with pytest.raises(NotEncodable):
            await ctx.reply(message, object())
        await ctx.reply(message, "second try")

    server = system.spawn(clumsy)
    assert await system.call(Call(server.pid, None)) == "second try"


@pytest.mark.parametrize("reads", [True, False])
async def test_the_caller_of_a_callee_that_dies_gets_unknown_process(system: Any, reads: bool) -> None:
    async def server(ctx: Context) -> None:
        if reads:
            await ctx.receive()
        await asyncio.get_running_loop().create_future()

    target = system.spawn(server)
    caller = system.thread(system.kernel.gate.enter(system.client, Call(target.pid, None)))
    await system.turns()
    await system.call(Kill(target.pid))
    with pytest.raises(UnknownProcess, match="before it replied"):
        await caller


async def test_the_caller_of_a_callee_that_returns_without_a_reply_gets_unknown_process(system: Any) -> None:
    async def rude(ctx: Context) -> None:
        await ctx.receive()

    server = system.spawn(rude)
    with pytest.raises(UnknownProcess):
        await system.call(Call(server.pid, None))


async def test_a_callee_that_ends_before_the_call_gets_to_it_is_no_endless_wait(system: Any) -> None:
    # A call from a socket runs in a thread, one turn after the gate has seen its recipient alive.
    target = system.kernel.lifecycle.open_client("other")
    caller = system.thread(system.kernel.gate.enter(system.client, Call(target.pid, None)))
    system.kernel.ending.end(target, "killed", "gone")
    with pytest.raises(UnknownProcess):
        await caller


async def test_a_call_waits_for_room_and_dies_with_the_recipient_there(system: Any) -> None:
    target = system.spawn(idle)
    target.mailbox = Mailbox(1)
    await system.call(Send(target.pid, "fills it"))
    with pytest.raises(TimedOut, match="had no room"):
        await system.call(Call(target.pid, None, 2.0))
    caller = system.thread(system.kernel.gate.enter(system.client, Call(target.pid, None)))
    await system.turns()
    await system.call(Kill(target.pid))
    with pytest.raises(UnknownProcess):
        await caller


async def test_a_call_whose_time_is_up_before_it_gets_to_the_full_mailbox_times_out(system: Any) -> None:
    """A client's call begins a turn after it came: in a busy daemon that can be too late."""
    target = system.spawn(idle)
    target.box().capacity = 1
    await system.call(Send(target.pid, "in the way"))
    for process in (system.client, system.spawn(idle)):
        with pytest.raises(TimedOut, match="had no room for the call"):
            await system.thread(system.kernel.gate.call(process, Call(target.pid, None, 0)), process)


async def test_a_call_cancelled_while_it_waits_for_room_leaves_the_line(system: Any) -> None:
    target = system.spawn(idle)
    box = target.mailbox = Mailbox(1)
    await system.call(Send(target.pid, "fills it"))
    callers = [system.thread(system.kernel.gate.enter(system.client, Call(target.pid, n))) for n in range(2)]
    await system.turns()
    box.take()
    callers[0].cancel()  # woken and cancelled at once
    await system.turns()
    assert (await system.call(Receive(0), target)).body == 1
    assert (box.count, box.taken) == (0, 0)


async def test_a_caller_that_is_killed_is_forgotten_and_the_reply_is_a_dead_letter(system: Any) -> None:
    replied = asyncio.Event()

    async def server(ctx: Context) -> None:
        message = await ctx.receive()
        await ctx.sleep(5)
        await ctx.reply(message, "for nobody")
        replied.set()
        await ctx.receive()

    async def caller(ctx: Context, to: int) -> None:
        await ctx.call(to, "hello")

    target = system.spawn(server)
    client = system.spawn(caller, to=target.pid)
    await system.turns()
    await system.call(Kill(client.pid))
    await replied.wait()
    assert await dead_letters(system) == 1
    assert target.owed == {}


async def test_a_reply_whose_caller_is_killed_before_it_looks_is_a_dead_letter(system: Any) -> None:
    async def server(ctx: Context) -> None:
        message = await ctx.receive()
        await ctx.reply(message, "for nobody")
        await ctx.kill(message.sender)
        await ctx.receive()

    async def caller(ctx: Context, to: int) -> None:
        await ctx.call(to, "hello")

    target = system.spawn(server)
    assert (await system.status(system.spawn(caller, to=target.pid))).reason == "killed"
    (letter,) = await system.call(DeadLetters())
    assert (letter.message.type, letter.reason) == ("reply", "the caller no longer waits")


async def test_a_call_that_was_not_read_in_time_is_not_owed_a_reply_for_ever(system: Any) -> None:
    target = system.spawn(idle)
    for _ in range(3):
        with pytest.raises(TimedOut):
            await system.call(Call(target.pid, "void", 1.0))
    assert len(target.owed) == 3
    with pytest.raises(TimedOut):
        await system.call(Receive(0), target)
    assert target.owed == {}
    assert await dead_letters(system) == 3


@pytest.mark.parametrize("undecodable", [msgspec.Raw(b"\xa1\xff"), msgspec.Raw(b"\x81\x81\x00\x00\x00")])
async def test_a_body_that_cannot_be_decoded_is_nothing_to_its_receiver(system: Any, undecodable: Any) -> None:
    """A client can send one: what comes from a socket is passed on as it came."""
    target = system.spawn(echo)
    await system.call(Send(target.pid, undecodable))
    with pytest.raises(BadMessage, match="cannot be decoded"):
        await system.call(Call(target.pid, undecodable))
    assert await system.call(Call(target.pid, "next")) == "next"
    assert [one.reason for one in await system.call(DeadLetters())] == ["its body cannot be decoded"] * 2
    assert target.mailbox.taken == 0
    assert target.owed == {}


async def test_a_drain_ends_although_senders_wait_for_room_and_messages_were_dropped(system: Any) -> None:
    """Nothing is counted that has to come back to zero: a stop waits for processes and for no message."""

    async def sender(ctx: Context, to: int) -> None:
        await ctx.send(to, "void", lifetime=0)
        await ctx.publish("topic", "dropped")
        await ctx.send(to, "waits for ever")

    target = system.spawn(idle)
    target.box().capacity = 1
    await system.call(Subscribe("topic"), target)
    await system.call(Send(target.pid, "in the way"))
    program = system.program(sender)
    senders = [system.spawn(program, to=target.pid) for _ in range(3)]
    await system.turns()
    assert [str(one.state()[1]) for one in senders] == [f"mailbox of {target.pid}"] * 3
    await system.kernel.drain(1)
    assert all(one.ended for one in (target, *senders))
    assert target.mailbox.taken == 0


async def test_unknown_recipients_are_refused_at_once(system: Any) -> None:
    for call in (Send(77, None), Call(77, None)):
        with pytest.raises(UnknownProcess, match="77 never existed"):
            await system.call(call)
    with pytest.raises(NotACall):
        await system.call(Reply(77, 1, None))


async def test_a_process_that_calls_itself_is_told_so(system: Any) -> None:
    async def lonely(ctx: Context) -> None:
        await ctx.call(ctx.pid, "hello")

    with pytest.raises(InvalidCall, match="calls itself"):
        await system.run(lonely)


async def test_a_process_can_send_to_itself(system: Any) -> None:
    async def lonely(ctx: Context) -> Any:
        await ctx.send(ctx.pid, "note")
        return (await ctx.receive()).body

    assert await system.run(lonely) == "note"


async def test_bodies_are_not_shared(system: Any) -> None:
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


async def test_a_body_that_cannot_travel_is_refused_and_nothing_is_sent(system: Any) -> None:
    target = system.spawn(idle)

    async def sender(ctx: Context, to: int) -> None:
        await ctx.send(to, object())

    with pytest.raises(NotEncodable):
        await system.run(sender, to=target.pid)
    assert target.mailbox is None or target.mailbox.count == 0


async def test_what_was_sent_and_received_is_counted(system: Any) -> None:
    server = system.spawn(echo)

    async def client(ctx: Context, to: int) -> None:
        await ctx.call(to, 1)

    status = await system.status(system.spawn(client, to=server.pid))
    assert (status.usage.messages_sent, status.usage.messages_received) == (1, 1)
    assert (server.messages_sent, server.messages_received) == (1, 1)


async def test_one_agent_takes_one_message_at_a_time_in_order(system: Any) -> None:
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


async def test_a_stray_wake_up_does_not_overfill_a_mailbox(system: Any) -> None:
    # An emit that was given up leaves a callback with the stream; the thread by then waits for something else.
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


async def test_arguments_of_spawn_that_cannot_travel_are_refused(system: Any) -> None:
    async def child(ctx: Context, value: Any) -> None:
        pass

    async def parent(ctx: Context) -> None:
        await ctx.spawn("child", {"value": object()})

    system.program(child)
    with pytest.raises((NotEncodable, BadArguments)):
        await system.run(parent)
