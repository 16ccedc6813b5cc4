"""Calls and replies between processes: each call gets its own reply, or an error if the called process ends."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from ipc.errors import (
    InvalidCall,
    NotACall,
    NotEncodable,
    TimedOut,
    UnknownProcess,
)
from ipc.syscalls import Call, DeadLetters, Kill, Receive, Send
from kernel.core import answers
from kernel.core.mailbox import Mailbox
from llmosd.context import Context
from tests.support.agents import echo, idle
from tests.support.system import System


async def test_a_call_answers_the_reply(system: System) -> None:
    server = system.spawn(echo)

    async def client(ctx: Context, to: int) -> Any:
        return [await ctx.call(to, {"n": n}) for n in range(3)]

    assert await system.run(client, to=server.pid) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert server.pending_calls == {}


async def test_calls_from_many_threads_get_their_own_replies(system: System) -> None:
    async def backwards(ctx: Context) -> None:
        messages = [await ctx.receive() for _ in range(5)]
        for message in reversed(messages):
            await ctx.reply(message, message.body * 10)

    server = system.spawn(backwards)

    async def client(ctx: Context, to: int) -> list[int]:
        return await asyncio.gather(*(ctx.call(to, n) for n in range(5)))

    assert await system.run(client, to=server.pid) == [0, 10, 20, 30, 40]


async def test_a_call_times_out_on_time(system: System) -> None:
    target = system.spawn(idle)
    before = system.loop.time()
    with pytest.raises(TimedOut) as caught:
        await system.call(Call(target.pid, "hello", 4.0))
    assert system.loop.time() - before == pytest.approx(4.0)
    assert caught.value.data == {"to": target.pid, "timeout": 4.0}
    assert list(target.pending_calls.values()) == [None]


async def test_the_message_of_a_call_that_timed_out_is_a_dead_letter(system: System) -> None:
    async def late_reader(ctx: Context) -> Any:
        await ctx.sleep(10)
        return (await ctx.receive()).body

    target = system.spawn(late_reader)
    with pytest.raises(TimedOut):
        await system.call(Call(target.pid, "void", 1.0))
    await system.call(Send(target.pid, "fresh"))
    assert await system.result(target) == "fresh"
    assert await system.dead_letters() == 1


async def test_a_late_reply_is_not_taken_for_the_next_call_s(system: System) -> None:
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
    assert await system.dead_letters() == 1


async def test_replying_twice_is_an_error_of_the_replier(system: System) -> None:
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


async def test_replying_to_a_message_that_was_no_call_is_an_error(system: System) -> None:
    async def confused(ctx: Context) -> None:
        await ctx.reply(await ctx.receive(), "?")

    server = system.spawn(confused)
    await system.call(Send(server.pid, None))
    with pytest.raises(NotACall):
        await system.result(server)


async def test_a_reply_with_a_value_that_cannot_travel_leaves_the_call_open(system: System) -> None:
    async def clumsy(ctx: Context) -> None:
        message = await ctx.receive()
        with pytest.raises(NotEncodable):
            await ctx.reply(message, object())
        await ctx.reply(message, "second try")

    server = system.spawn(clumsy)
    assert await system.call(Call(server.pid, None)) == "second try"


@pytest.mark.parametrize("reads", [True, False])
async def test_the_caller_of_a_callee_that_dies_gets_unknown_process(system: System, reads: bool) -> None:
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


async def test_the_caller_of_a_callee_that_returns_without_a_reply_gets_unknown_process(system: System) -> None:
    async def rude(ctx: Context) -> None:
        await ctx.receive()

    server = system.spawn(rude)
    with pytest.raises(UnknownProcess):
        await system.call(Call(server.pid, None))


async def test_a_callee_that_ends_before_the_call_gets_to_it_is_no_endless_wait(system: System) -> None:
    # A call from a socket runs in a thread, one turn after the gate has seen its recipient alive.
    target = system.kernel.lifecycle.open_client("other")
    caller = system.thread(system.kernel.gate.enter(system.client, Call(target.pid, None)))
    system.kernel.process_exit.end(target, "killed", "gone")
    with pytest.raises(UnknownProcess):
        await caller


async def test_a_call_waits_for_room_and_dies_with_the_recipient_there(system: System) -> None:
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


async def test_a_call_whose_time_is_up_before_it_gets_to_the_full_mailbox_times_out(system: System) -> None:
    """A client's call starts one turn of the loop after it arrived, which can be too late in a busy daemon."""
    target = system.spawn(idle)
    target.open_mailbox().capacity = 1
    await system.call(Send(target.pid, "in the way"))
    for process in (system.client, system.spawn(idle)):
        with pytest.raises(TimedOut, match="had no room for the call"):
            await system.thread(system.kernel.gate.call(process, Call(target.pid, None, 0)), process)


async def test_a_call_cancelled_while_it_waits_for_room_leaves_the_line(system: System) -> None:
    target = system.spawn(idle)
    box = target.mailbox = Mailbox(1)
    await system.call(Send(target.pid, "fills it"))
    callers = [system.thread(system.kernel.gate.enter(system.client, Call(target.pid, n))) for n in range(2)]
    await system.turns()
    box.take()
    callers[0].cancel()  # woken and cancelled in one turn of the loop
    await system.turns()
    assert (await system.call(Receive(0), target)).body == 1
    assert (box.count, box.taken) == (0, 0)


async def test_a_caller_that_is_killed_is_forgotten_and_the_reply_is_a_dead_letter(system: System) -> None:
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
    assert await system.dead_letters() == 1
    assert target.pending_calls == {}


async def test_a_reply_whose_caller_is_killed_before_it_looks_is_a_dead_letter(system: System) -> None:
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


async def test_a_call_that_was_not_read_in_time_is_not_owed_a_reply_for_ever(system: System) -> None:
    target = system.spawn(idle)
    for _ in range(3):
        with pytest.raises(TimedOut):
            await system.call(Call(target.pid, "void", 1.0))
    assert len(target.pending_calls) == 3
    with pytest.raises(TimedOut):
        await system.call(Receive(0), target)
    assert target.pending_calls == {}
    assert await system.dead_letters() == 3


@pytest.mark.parametrize("callers", [10, answers.LATE_REPLIES + 200])
async def test_late_replies_are_dead_letters_at_any_number_of_callers_that_gave_up(
    system: System, callers: int
) -> None:
    async def late(ctx: Context) -> int:
        calls = [await ctx.receive() for _ in range(callers)]
        await ctx.sleep(10)
        for call in calls:
            await ctx.reply(call, "late")
        message = await ctx.receive()
        with pytest.raises(NotACall):
            await ctx.reply(message, "no call")
        await ctx.reply(await ctx.receive(), "in time")
        return len(ctx._process.pending_calls or ())

    async def impatient(ctx: Context, to: int) -> None:
        await asyncio.gather(*(ctx.call(to, n, timeout=2.0) for n in range(callers)), return_exceptions=True)

    target = system.spawn(late)
    target.open_mailbox().capacity = callers
    await system.run(impatient, to=target.pid)
    assert len(target.pending_calls) == min(callers, answers.LATE_REPLIES)
    await system.call(Send(target.pid, "no call"))
    assert await system.call(Call(target.pid, "a call", 20.0)) == "in time"
    assert await system.result(target) == 0
    assert await system.dead_letters() == callers


async def test_a_process_that_calls_itself_is_told_so(system: System) -> None:
    async def lonely(ctx: Context) -> None:
        await ctx.call(ctx.pid, "hello")

    with pytest.raises(InvalidCall, match="calls itself"):
        await system.run(lonely)
