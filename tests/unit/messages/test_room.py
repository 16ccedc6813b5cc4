"""Room in full mailboxes: messages that expire make room for senders that wait, and no room is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.errors import Busy, DeadlockDetected, MailboxFull, UnknownProcess
from ipc.syscalls import Call, Send
from kernel.core.process import Process
from llmosd.context import Context
from tests.support.agents import forever
from tests.support.growth import Counted, exponent
from tests.support.system import System

LARGE = "x" * 5000  # its bytes count


@pytest.fixture
def target(system: System) -> Process:
    """Receives nothing; its mailbox has three places."""
    process = system.spawn(forever)
    process.open_mailbox().capacity = 3
    return process


async def fill(system: System, target: Process, lifetimes: list[float | None]) -> None:
    for lifetime in lifetimes:
        await system.call(Send(target.pid, "old", lifetime=lifetime))


async def sending(ctx: Context, to: int, body: Any = "new", lifetime: float | None = None) -> float:
    await ctx.send(to, body, wait=True, lifetime=lifetime)
    return asyncio.get_running_loop().time()


async def test_a_waiting_sender_gets_room_when_a_message_expires(system: System, target: Process) -> None:
    start = system.loop.time()
    await fill(system, target, [7.0, None, 3.0])
    senders = [system.spawn(sending, to=target.pid) for _ in range(2)]
    assert [await system.result(one) - start for one in senders] == pytest.approx([3.0, 7.0])
    assert await system.dead_letters() == 2


async def test_a_waiting_call_gets_room_when_a_message_expires(system: System, target: Process) -> None:
    await fill(system, target, [None, None, 3.0])
    call = system.thread(system.call(Call(target.pid, "new", 10.0)))
    await asyncio.sleep(4)
    assert [message.body for message in target.open_mailbox().peek()] == ["old", "old", "new"]
    call.cancel()


async def test_the_message_of_a_sender_that_had_waited_makes_room_when_it_expires(
    system: System, target: Process
) -> None:
    start = system.loop.time()
    await fill(system, target, [1.0, None, None])
    senders = [system.spawn(sending, to=target.pid, lifetime=4.0) for _ in range(3)]
    assert [await system.result(one) - start for one in senders] == pytest.approx([1.0, 4.0, 4.0], abs=0.01)


async def test_senders_to_each_others_full_mailboxes_wait_for_a_message_to_expire(system: System) -> None:
    async def one(ctx: Context, to: int, again: bool) -> float:
        await ctx.sleep(1)
        await ctx.send(to, "new", wait=True)
        return await sending(ctx, to) if again else asyncio.get_running_loop().time()

    start = system.loop.time()
    pids = system.client.pid + 1, system.client.pid + 2
    first, second = (system.spawn(one, to=to, again=to == pids[0]) for to in reversed(pids))
    for process in (first, second):
        process.open_mailbox().capacity = 1
        await system.call(Send(process.pid, "old", lifetime=5.0))
    assert await system.result(first) - start == pytest.approx(5.0)
    with pytest.raises(UnknownProcess):  # the first, which has ended
        await system.result(second)


async def test_they_are_deadlocked_once_no_message_may_expire(system: System) -> None:
    async def one(ctx: Context, to: int) -> None:
        await ctx.sleep(1)
        for _ in range(2):
            await ctx.send(to, "new", wait=True)

    start = system.loop.time()
    pids = system.client.pid + 1, system.client.pid + 2
    first, second = (system.spawn(one, to=to) for to in reversed(pids))
    for process in (first, second):
        process.open_mailbox().capacity = 1
        await system.call(Send(process.pid, "old", lifetime=5.0))
    with pytest.raises(DeadlockDetected):
        await system.result(second)
    assert system.loop.time() - start == pytest.approx(5.0)


async def test_a_sender_that_gets_room_but_no_memory_passes_the_room_on(system: System, target: Process) -> None:
    await fill(system, target, [None, None, 3.0])
    memory = system.kernel.messaging.memory
    first = system.spawn(sending, to=target.pid, body=LARGE)
    await system.turns()
    second = system.spawn(sending, to=target.pid)
    await asyncio.sleep(2)
    memory.maximum = memory.used - 1  # other bodies take the memory while the first sender waits
    with pytest.raises(Busy):
        await system.result(first)
    await system.result(second)
    assert [message.body for message in target.open_mailbox().peek()] == ["old", "old", "new"]


async def test_a_call_that_gets_room_but_no_memory_passes_the_room_on(system: System, target: Process) -> None:
    await fill(system, target, [None, None, 3.0])
    memory = system.kernel.messaging.memory
    call = system.thread(system.call(Call(target.pid, LARGE)))
    await system.turns()
    second = system.spawn(sending, to=target.pid)
    await asyncio.sleep(2)
    memory.maximum = memory.used - 1
    with pytest.raises(Busy):
        await call
    await system.result(second)


async def test_a_larger_mailbox_admits_waiting_senders_at_once(system: System, target: Process) -> None:
    await fill(system, target, [None, None, None])
    sender = system.spawn(sending, to=target.pid)
    await system.turns()
    target.open_mailbox().capacity = 4
    await system.turns()
    assert sender.ended


async def test_the_cost_of_waiting_for_room_does_not_grow_with_the_senders_and_messages(system: System) -> None:
    async def trial(count: int) -> int:
        target = system.spawn(forever)
        box = target.open_mailbox()
        box.capacity = count
        await fill(system, target, [None] * count)
        with Counted("messages/room.py", "messages/messaging.py", "core/mailbox.py") as counted:
            for _ in range(count):
                with pytest.raises(MailboxFull):
                    await system.call(Send(target.pid, "no", wait=False))
            threads = [system.thread(system.call(Send(target.pid, "new", wait=True))) for _ in range(count)]
            await system.turns(count)
            for _ in range(count):
                box.take()
            await asyncio.gather(*threads)
        return counted.lines

    assert await exponent(trial, 60, 240) < 1.2
