"""The mailbox with senders and receivers that come, go and are cancelled at random: nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.messages import Message
from kernel.core.fiber import PARK
from kernel.core.mailbox import Mailbox
from kernel.core.plain_wait import PlainWait
from kernel.core.process import Process, Thread
from kernel.core.selector import Selector
from kernel.dispatch.dispatcher import Dispatcher
from kernel.messages.room import wait_for_room
from tests.support.mailbox import message

SELECTORS = [  # by number of a choice; None for any message
    None,
    Selector(where=lambda message: message.id % 2 == 0),
    Selector(sender=1, where=lambda message: message.id % 2 == 1),
    Selector(sender=1),
    Selector(type="", where=lambda message: message.id % 3 == 0),
]


class Trial:
    """A mailbox with senders and receivers that come, go and are cancelled; checks what must hold when all is quiet."""

    def __init__(self, loop: asyncio.AbstractEventLoop, capacity: int) -> None:
        self.box = Mailbox(capacity)
        self.dispatcher = Dispatcher(loop)
        self.process = Process(1, None, "trial", {}, owner="", priority=0)
        self.senders: list[tuple[Message, Thread]] = []
        self.receivers: list[Thread] = []
        self.wanted: dict[Thread, Selector | None] = {}
        self.received: list[Message] = []
        self.put: set[int] = set()

    def start(self, coro: Coroutine[Any, Any, Any]) -> Thread:
        return Thread(self.process, coro, self.dispatcher)

    def send(self, priority: int) -> None:
        item = message(len(self.senders), priority)
        self.senders.append((item, self.start(self._send(item))))

    def receive(self, choice: int) -> None:
        selector = SELECTORS[choice]
        thread = self.start(self._receive(selector))
        self.receivers.append(thread)
        self.wanted[thread] = selector

    async def _send(self, item: Message) -> None:
        while self.box.full:
            if await wait_for_room(
                self.box, cast("Thread", asyncio.current_task()), PlainWait("trial", "mailbox", "waiting")
            ):
                break
        self.box.put(item)
        self.put.add(item.id)

    def _take(self, selector: Selector | None) -> Message | None:
        return self.box.take() if selector is None else self.box.select(selector)

    async def _receive(self, selector: Selector | None) -> None:
        thread = cast("Thread", asyncio.current_task())
        message = self._take(selector)
        while message is None:
            self.box.add_receiver(thread, selector)
            try:
                await PARK
                message = self._take(selector)
            finally:
                self.box.end_receive(thread)
        self.received.append(message)

    def check(self) -> None:
        over = [thread for thread in (*self.receivers, *(thread for _, thread in self.senders)) if thread.done()]
        assert [thread for thread in over if not thread.cancelled() and thread.exception() is not None] == []
        waiting_senders = [thread for _, thread in self.senders if not thread.done()]
        waiting_receivers = [thread for thread in self.receivers if not thread.done()]
        assert self.box.count <= self.box.capacity
        assert self.box.taken == self.box.count, "a place was lost"
        assert not (waiting_senders and not self.box.full), "room, and somebody waits for it"
        for thread in waiting_receivers:
            selector = self.wanted[thread]
            wanted = [one.id for one in self.box.peek() if selector is None or selector.matches(one)]
            assert not wanted, "a message, and somebody waits for it"
        taken = [item.id for item in self.received]
        assert len(set(taken)) == len(taken), "a message was received twice"
        assert len(self.put) == len(taken) + self.box.count, "a message was lost"
        entered = [item.id for item, _ in self.senders if item.id in self.put]
        line = [item.id for item, thread in self.senders if not thread.done()]
        assert not entered or not line or entered[-1] < line[0], "somebody overtook in the line"


OPERATION = st.one_of(
    st.tuples(st.just("send"), st.integers(-1, 1)),
    st.tuples(st.just("receive"), st.integers(0, len(SELECTORS) - 1)),
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
                trial.receive(number)
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
        by_priority: dict[int, list[int]] = {}
        for item in trial.received:
            by_priority.setdefault(item.priority, []).append(item.id)
        if not any(trial.wanted.values()):
            assert all(ids == sorted(ids) for ids in by_priority.values())
        for thread in [*trial.receivers, *(thread for _, thread in trial.senders)]:
            thread.cancel()

    with asyncio.Runner() as runner:
        runner.run(run())
