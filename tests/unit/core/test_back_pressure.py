"""A full mailbox: senders wait for room in their order, and a place is neither lost nor given twice."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.errors import MailboxFull
from ipc.syscalls import Resume, Send, Suspend
from kernel.core.mailbox import Mailbox
from llmosd.context import Context
from tests.support.mailbox import receive, send


async def test_senders_wait_for_room_and_get_it_in_order_of_arrival(system: Any, box: Mailbox) -> None:
    senders = [send(system, n) for n in range(6)]
    await system.turns()
    assert [sender.done() for sender in senders] == [True, True, False, False, False, False]
    assert str(senders[2].waits_for) == f"mailbox of {system.target.pid}"
    for n in range(4):
        assert await receive(system) == n
        await system.turns()
        assert [sender.done() for sender in senders] == [True] * (n + 3) + [False] * (3 - n)
        assert box.count == 2


async def test_nobody_slips_in_before_a_sender_that_was_given_a_place(system: Any, box: Mailbox) -> None:
    for n in range(3):
        send(system, n)
    await system.turns()
    assert box.take().body == 0
    # The waiting sender has been woken and has not run yet: the place is reserved for it.
    assert box.full
    with pytest.raises(MailboxFull):
        await system.call(Send(system.target.pid, "barger", wait=False))
    late = send(system, 3)
    await system.turns()
    assert not late.done()
    assert [await receive(system) for _ in range(3)] == [1, 2, 3]


async def test_an_urgent_message_waits_in_the_same_line_and_is_read_first(system: Any, box: Mailbox) -> None:
    for n in range(3):
        send(system, n)
    send(system, "urgent", priority=10)
    assert [await receive(system) for _ in range(4)] == [0, 1, "urgent", 2]


async def test_a_cancelled_sender_leaves_the_line(system: Any, box: Mailbox) -> None:
    senders = [send(system, n) for n in range(5)]
    await system.turns()
    senders[2].cancel()
    await system.turns()
    assert [await receive(system) for _ in range(4)] == [0, 1, 3, 4]
    assert not box.full
    assert box.taken == box.count


async def test_a_sender_woken_and_cancelled_at_once_passes_its_place_on(system: Any, box: Mailbox) -> None:
    senders = [send(system, n) for n in range(6)]
    await system.turns()
    box.take()
    senders[2].cancel()
    await system.turns()
    assert [sender.done() for sender in senders] == [True, True, True, True, False, False]
    assert senders[2].cancelled()
    assert (box.count, box.taken) == (2, 2)
    assert [await receive(system) for _ in range(4)] == [1, 3, 4, 5]


async def test_the_last_sender_woken_and_cancelled_gives_its_place_back(system: Any, box: Mailbox) -> None:
    senders = [send(system, n) for n in range(3)]
    await system.turns()
    box.take()
    senders[2].cancel()
    await system.turns()
    assert (box.count, box.taken, box.full) == (1, 1, False)
    await system.call(Send(system.target.pid, "fits", wait=False))


async def test_the_place_of_a_suspended_sender_is_kept_for_it(system: Any, box: Mailbox) -> None:
    async def sender(ctx: Context, to: int, n: int) -> None:
        await ctx.send(to, n)

    system.program(sender)
    first, second, third = (system.spawn("sender", to=system.target.pid, n=n) for n in range(3))
    await system.turns()
    await system.call(Suspend(third.pid))
    assert await receive(system) == 0
    await system.turns()
    assert box.full
    assert not third.ended
    await system.call(Resume(third.pid))
    await system.status(third)
    assert [await receive(system) for _ in range(2)] == [1, 2]
    assert first.ended
    assert second.ended


async def test_a_wake_up_for_something_else_gives_no_place(system: Any, box: Mailbox) -> None:
    senders = [send(system, n) for n in range(3)]
    await system.turns()
    senders[2].wake()
    await system.turns()
    assert box.count == 2
    assert not senders[2].done()
    assert [await receive(system) for _ in range(3)] == [0, 1, 2]
    assert box.taken == box.count


async def test_a_sender_that_gets_to_the_line_when_there_is_room_again_does_not_wait(system: Any, box: Mailbox) -> None:
    # A client gets here: its call passes the gate when its frame arrives, and waits in a thread that runs a turn later.
    for n in range(2):
        await system.call(Send(system.target.pid, n))
    late = system.thread(system.kernel.gate.enter(system.client, Send(system.target.pid, 2)))
    box.take()
    box.take()
    await system.turns()
    assert late.done()
    assert box.count == 1
