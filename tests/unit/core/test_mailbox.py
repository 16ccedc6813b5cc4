"""The mailbox: in order, fair to its receivers, and cancelling a wait loses nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.errors import MailboxFull, TimedOut, UnknownProcess
from ipc.syscalls import GetStats, Kill, Send
from kernel.core.mailbox import CAPACITY, Mailbox
from tests.support.agents import idle
from tests.support.mailbox import listen, message, receive, send

# ---- order


async def test_messages_come_by_priority_and_then_in_order(system: Any, box: Mailbox) -> None:
    box.capacity = 100
    for number, priority in enumerate([0, 5, -20, 5, 0, 20]):
        await system.call(Send(system.target.pid, number, priority=priority))
    assert [await receive(system) for _ in range(6)] == [5, 1, 3, 0, 4, 2]


async def test_the_default_mailbox_holds_a_thousand_and_no_more(system: Any) -> None:
    target = system.spawn(idle)
    for number in range(CAPACITY):
        await system.call(Send(target.pid, number, wait=False))
    with pytest.raises(MailboxFull) as caught:
        await system.call(Send(target.pid, "one too many", wait=False))
    assert caught.value.data == {"to": target.pid, "capacity": CAPACITY}
    assert target.mailbox.count == CAPACITY


async def test_a_flood_for_a_stuck_agent_makes_no_tasks(system: Any) -> None:
    target = system.spawn(idle)
    await system.turns()
    before = len(asyncio.all_tasks())
    for number in range(CAPACITY):
        await system.call(Send(target.pid, number))
    assert len(asyncio.all_tasks()) == before


# ---- receivers


async def test_receivers_are_served_in_order(system: Any, box: Mailbox) -> None:
    receivers = [receive(system) for _ in range(3)]
    await system.turns()
    for n in range(3):
        await system.call(Send(system.target.pid, n))
    await system.turns()
    assert [receiver.result() for receiver in receivers] == [0, 1, 2]


async def test_an_agent_that_waits_gets_its_mailbox_with_the_first_message(system: Any) -> None:
    system.target = system.spawn(idle)
    await system.turns()
    first, second = listen(system), listen(system)
    first.cancel()  # while there is no mailbox: nothing is left of it
    await system.turns()
    assert second.cancel()
    await system.turns()
    assert (system.target.mailbox, system.target.first_receiver) == (None, None)
    first, second, third = listen(system), listen(system), listen(system)
    await system.turns()
    await send(system, 1)
    await send(system, 2)
    assert [await first, await second] == [1, 2]
    await send(system, 3)
    assert await third == 3
    assert system.target.first_receiver is None


async def test_the_only_listener_woken_and_cancelled_at_once_leaves_the_message(system: Any) -> None:
    system.target = system.spawn(idle)
    await system.turns()
    receiver = listen(system)
    await system.turns()
    assert (system.target.mailbox, system.target.first_receiver) == (None, receiver)
    system.kernel.gate.enter(system.client, Send(system.target.pid, 1))
    receiver.cancel()
    await system.turns()
    assert await listen(system) == 1


async def test_a_listener_woken_for_something_else_waits_on(system: Any) -> None:
    system.target = system.spawn(idle)
    await system.turns()
    receiver = listen(system)
    await system.turns()
    receiver.wake()
    await system.turns()
    assert not receiver.done()
    await send(system, 1)
    assert await receiver == 1


async def test_a_cancelled_receiver_loses_no_message(system: Any, box: Mailbox) -> None:
    box.capacity = CAPACITY
    receivers = [receive(system) for _ in range(100)]
    await system.turns(3)
    for n in range(100):
        await system.call(Send(system.target.pid, n))
    for receiver in receivers:
        receiver.cancel()  # each was woken for a message already
    await system.turns(3)
    assert all(receiver.cancelled() for receiver in receivers)
    assert box.count == 100
    assert [await receive(system) for _ in range(100)] == list(range(100))


async def test_a_receiver_woken_and_cancelled_at_once_passes_the_wake_up_on(system: Any, box: Mailbox) -> None:
    first, second = receive(system), receive(system)
    await system.turns()
    await system.call(Send(system.target.pid, "only"))
    first.cancel()
    await system.turns()
    assert first.cancelled()
    assert second.result() == "only"


async def test_a_receiver_whose_message_was_taken_waits_again(system: Any, box: Mailbox) -> None:
    receiver = receive(system)
    await system.turns()
    await system.call(Send(system.target.pid, "first"))
    assert box.take().body == "first"
    await system.turns()
    assert not receiver.done()
    await system.call(Send(system.target.pid, "second"))
    assert await receiver == "second"


async def test_receive_times_out_on_time(system: Any, box: Mailbox) -> None:
    before = system.loop.time()
    with pytest.raises(TimedOut):
        await receive(system, 2.5)
    assert system.loop.time() - before == pytest.approx(2.5)
    await system.call(Send(system.target.pid, "late"))
    assert await receive(system) == "late"


async def test_receive_without_patience_only_looks(system: Any, box: Mailbox) -> None:
    with pytest.raises(TimedOut):
        await receive(system, 0)
    await system.call(Send(system.target.pid, "x"))
    assert await receive(system, 0) == "x"


async def test_an_expired_message_is_a_dead_letter_and_frees_its_place(system: Any, box: Mailbox) -> None:
    await system.call(Send(system.target.pid, "short-lived", lifetime=1))
    await system.call(Send(system.target.pid, "lasting"))
    waiting = send(system, "in line")
    await asyncio.sleep(2)
    assert await receive(system) == "lasting"
    assert await receive(system) == "in line"
    assert waiting.done()
    assert box.taken == box.count
    assert (await system.call(GetStats())).dead_letters == 1


async def test_a_receiver_is_not_answered_by_an_expired_message(system: Any, box: Mailbox) -> None:
    receiver = receive(system, 5)
    await system.turns()
    await system.call(Send(system.target.pid, "void", lifetime=0))
    await system.turns()
    assert not receiver.done()
    with pytest.raises(TimedOut):
        await receiver


# ---- the end


async def test_the_end_of_the_recipient_wakes_everybody_and_buries_the_rest(system: Any, box: Mailbox) -> None:
    senders = [send(system, n) for n in range(5)]
    await system.turns()
    await system.call(Kill(system.target.pid))
    for sender in senders[2:]:
        with pytest.raises(UnknownProcess, match="has ended"):
            await sender
    assert (await system.call(GetStats())).dead_letters == 2
    with pytest.raises(UnknownProcess):
        await system.call(Send(system.target.pid, "too late"))


async def test_a_sender_given_a_place_that_is_closed_before_it_runs_is_refused(system: Any, box: Mailbox) -> None:
    senders = [send(system, n) for n in range(3)]
    await system.turns()
    box.take()
    box.close()
    with pytest.raises(UnknownProcess):
        await senders[2]
    assert not box.full


async def test_close_hands_back_what_was_not_received_most_urgent_first() -> None:
    box = Mailbox(10)
    for number, priority in enumerate([0, 5, -5]):
        box.put(message(number, priority))
    assert [rest.id for rest in box.close()] == [1, 0, 2]
    assert box.count == 0
