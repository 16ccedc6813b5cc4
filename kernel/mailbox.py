"""The mailbox of a process: bounded, ordered by priority and then by arrival, with waiting senders and receivers.

Called by the message subsystem. Messages live in the mailbox and never in a waiter, so a cancelled wait loses none.
It knows nothing of processes; it wakes threads and holds messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from ipc.messages import Message
from kernel.thread import PARK, Thread
from kernel.waiting import Wait

CAPACITY = 1000  # messages


class Mailbox:
    """Lanes by priority, each first in first out. Made at first use, since most processes never get a message."""

    __slots__ = ("_lanes", "_receivers", "_reserved", "_senders", "capacity", "closed", "count")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.count = 0
        self.closed = False
        self._lanes: dict[int, deque[Message]] = {}
        self._receivers: deque[Thread] = deque()
        self._reserved = 0  # places kept for senders that were woken and have not run yet
        self._senders: deque[Thread] = deque()

    @property
    def full(self) -> bool:
        return self.count + self._reserved >= self.capacity

    def put(self, message: Message) -> None:
        """Add `message`. The caller has seen that the mailbox is neither full nor closed."""
        lane = self._lanes.get(message.priority)
        if lane is None:
            lane = self._lanes[message.priority] = deque()
        lane.append(message)
        self.count += 1
        if self._receivers:
            self._receivers.popleft().wake()

    def take(self) -> Message:
        """Remove the first message of the most urgent lane. The caller has seen that there is one."""
        lanes = self._lanes
        urgency = max(lanes) if len(lanes) > 1 else next(iter(lanes))
        lane = lanes[urgency]
        message = lane.popleft()
        if not lane:
            del lanes[urgency]
        self.count -= 1
        if self._senders:
            self._reserved += 1
            self._senders.popleft().wake()
        return message

    async def wait_for_message(self) -> None:
        """Return when there may be a message: look, and wait again if another thread took it."""
        thread = cast(Thread, asyncio.current_task())
        try:
            await self._wait(self._receivers, thread, "message")
        except BaseException:
            # Woken for a message and cancelled at once: let another thread have it.
            if not self._leave(self._receivers, thread) and self.count and self._receivers:
                self._receivers.popleft().wake()
            raise

    async def wait_for_room(self, why: Wait | str) -> bool:
        """Wait in line for a place. True: put your message now, or see `closed`. False: something else woke you."""
        thread = cast(Thread, asyncio.current_task())
        try:
            granted = await self._wait(self._senders, thread, why)
        except BaseException:
            if not self._leave(self._senders, thread):
                self._pass_on_place()
            raise
        if granted and not self.closed:
            self._reserved -= 1
        return granted

    def close(self) -> list[Message]:
        """Refuse everything from now on, wake whoever waits, and hand back what was not received, most urgent first."""
        self.closed = True
        rest = [message for urgency in sorted(self._lanes, reverse=True) for message in self._lanes[urgency]]
        self._lanes.clear()
        self.count = self._reserved = 0
        for waiter in (*self._receivers, *self._senders):
            waiter.wake()
        self._receivers.clear()
        self._senders.clear()
        return rest

    async def _wait(self, queue: deque[Thread], thread: Thread, why: Wait | str) -> bool:
        """Park in `queue`. True if the thread was called from there, False if something else woke it."""
        thread.waits_for = why
        queue.append(thread)
        await PARK
        return not self._leave(queue, thread)

    def _leave(self, queue: deque[Thread], thread: Thread) -> bool:
        """Take `thread` out of `queue`; False if it was called from there before."""
        if thread not in queue:
            return False
        queue.remove(thread)
        return True

    def _pass_on_place(self) -> None:
        """A sender was given a place and cannot use it."""
        if self.closed:
            return
        if self._senders:
            self._senders.popleft().wake()
        else:
            self._reserved -= 1
