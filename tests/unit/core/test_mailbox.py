"""The mailbox: bounded, in order, fair to senders in line, and cancelling a wait loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.errors import MailboxFull, TimedOut, UnknownProcess
from ipc.messages import Message
from ipc.syscalls import ANY_MESSAGE, GetStats, Kill, Receive, Resume, Send, Suspend
from kernel.dispatcher import Dispatcher
from kernel.mailbox import CAPACITY, Mailbox
from kernel.process import Process
from kernel.thread import PARK, Thread
from llmosd.context import Context
from tests.support.agents import idle


def message(number: int, priority: int = 0) -> Message:
    return Message(number, "", 1, 2, priority, 0, None, None)


@pytest.fixture
async def box(system: Any) -> Mailbox:
    """The mailbox, with room for two, of a process that receives nothing by itself."""
    system.target = system.spawn(idle)
    await system.turns()
    system.target.mailbox = Mailbox(2)
    return system.target.mailbox


def send(system: Any, body: Any, **options: Any) -> Thread:
    """A thread that sends `body` to the target."""

    async def sending() -> int:
        return await system.kernel.gate.call(system.client, Send(system.target.pid, body, **options))

    return system.thread(sending())


def receive(system: Any, timeout: float | None = None) -> Thread:
    async def receiving() -> Any:
        return (await system.kernel.gate.call(system.target, Receive(timeout))).body

    return system.thread(receiving(), system.target)


def listen(system: Any) -> Thread:
    """As an agent's plain `receive` does."""

    async def listening() -> Any:
        return (await system.kernel.gate.call(system.target, ANY_MESSAGE)).body

    return system.thread(listening(), system.target)


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


# ---- back-pressure


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
    # The waiting sender has been woken and has not run: the place is its own.
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
    # So it is for a client: its call is entered when its frame comes, and waits in a thread that runs a turn later.
    for n in range(2):
        await system.call(Send(system.target.pid, n))
    late = system.thread(system.kernel.gate.enter(system.client, Send(system.target.pid, 2)))
    box.take()
    box.take()
    await system.turns()
    assert late.done()
    assert box.count == 1


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
    assert (system.target.mailbox, system.target.listener) == (None, None)
    first, second, third = listen(system), listen(system), listen(system)
    await system.turns()
    await send(system, 1)
    await send(system, 2)
    assert [await first, await second] == [1, 2]
    await send(system, 3)
    assert await third == 3
    assert system.target.listener is None


async def test_the_only_listener_woken_and_cancelled_at_once_leaves_the_message(system: Any) -> None:
    system.target = system.spawn(idle)
    await system.turns()
    receiver = listen(system)
    await system.turns()
    assert (system.target.mailbox, system.target.listener) == (None, receiver)
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


# ---- against a model


class Trial:
    """A mailbox with senders and receivers that come, go and are cancelled; checks what must hold when all is quiet."""

    def __init__(self, loop: asyncio.AbstractEventLoop, capacity: int) -> None:
        self.box = Mailbox(capacity)
        self.dispatcher = Dispatcher(loop)
        self.process = Process(1, None, "trial", {}, owner="", priority=0)
        self.senders: list[tuple[Message, Thread]] = []
        self.receivers: list[Thread] = []
        self.received: list[Message] = []
        self.put: set[int] = set()

    def start(self, coro: Coroutine[Any, Any, Any]) -> Thread:
        return Thread(self.process, coro, self.dispatcher)

    def send(self, priority: int) -> None:
        item = message(len(self.senders), priority)
        self.senders.append((item, self.start(self._send(item))))

    def receive(self) -> None:
        self.receivers.append(self.start(self._receive()))

    async def _send(self, item: Message) -> None:
        while self.box.full:
            if await self.box.wait_for_room(cast(Thread, asyncio.current_task()), "trial"):
                break
        self.box.put(item)
        self.put.add(item.id)

    async def _receive(self) -> None:
        thread = cast(Thread, asyncio.current_task())
        message = self.box.take()
        while message is None:
            self.box.enlist(thread)
            try:
                await PARK
                message = self.box.take()
            finally:
                self.box.delist(thread)
        self.received.append(message)

    def check(self) -> None:
        waiting_senders = [thread for _, thread in self.senders if not thread.done()]
        waiting_receivers = [thread for thread in self.receivers if not thread.done()]
        assert self.box.count <= self.box.capacity
        assert self.box.taken == self.box.count, "a place was lost"
        assert not (waiting_senders and not self.box.full), "room, and somebody waits for it"
        assert not (waiting_receivers and self.box.count), "a message, and somebody waits for it"
        taken = [item.id for item in self.received]
        assert len(set(taken)) == len(taken), "a message came twice"
        assert len(self.put) == len(taken) + self.box.count, "a message was lost"
        entered = [item.id for item, _ in self.senders if item.id in self.put]
        line = [item.id for item, thread in self.senders if not thread.done()]
        assert not entered or not line or entered[-1] < line[0], "somebody overtook in the line"


OPERATION = st.one_of(
    st.tuples(st.just("send"), st.integers(-1, 1)),
    st.tuples(st.just("receive"), st.just(0)),
    st.tuples(st.just("cancel sender"), st.integers(0, 10)),
    st.tuples(st.just("cancel receiver"), st.integers(0, 10)),
    st.tuples(st.just("turn"), st.just(0)),
    st.tuples(st.just("settle"), st.just(0)),
)


@settings(max_examples=200, deadline=None)
@given(capacity=st.integers(1, 3), operations=st.lists(OPERATION, max_size=40))
def test_whatever_is_cancelled_nothing_is_lost_and_nobody_overtakes(
    capacity: int, operations: list[tuple[str, int]]
) -> None:
    async def run() -> None:
        trial = Trial(asyncio.get_running_loop(), capacity)
        for kind, number in [*operations, ("settle", 0)]:
            if kind == "send":
                trial.send(number)
            elif kind == "receive":
                trial.receive()
            elif kind == "cancel sender" and trial.senders:
                trial.senders[number % len(trial.senders)][1].cancel()
            elif kind == "cancel receiver" and trial.receivers:
                trial.receivers[number % len(trial.receivers)].cancel()
            elif kind == "turn":
                await asyncio.sleep(0)
            elif kind == "settle":
                for _ in range(6):
                    await asyncio.sleep(0)
                trial.check()
        by_lane: dict[int, list[int]] = {}
        for item in trial.received:
            by_lane.setdefault(item.priority, []).append(item.id)
        assert all(ids == sorted(ids) for ids in by_lane.values())
        for thread in [*trial.receivers, *(thread for _, thread in trial.senders)]:
            thread.cancel()

    with asyncio.Runner() as runner:
        runner.run(run())
