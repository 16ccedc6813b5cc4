"""Room in full mailboxes: senders wait for it in line, and messages past their deadline make it.

Sends, calls, publications and durable processes ask for room here. A message that expires in a full mailbox becomes a
dead letter when its deadline passes, if a sender waits, or else when the next sender asks. It never puts a message.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import cast

from ipc.errors import MailboxFull, TimedOut
from ipc.syscalls import Call
from kernel.core.body_memory import BodyMemory
from kernel.core.fiber import PARK
from kernel.core.mailbox import Mailbox
from kernel.core.plain_wait import ThreadWait
from kernel.core.process import Process, Thread
from kernel.core.timers import Timer
from kernel.core.waits import RoomIn
from kernel.dispatch import deadlock
from kernel.dispatch.dispatcher import Dispatcher
from kernel.messages.dead_letters import DeadLetterQueue

# Seconds between two searches for expired messages, for each message in the mailbox: a search takes about a twentieth.
PACE = 5e-6


class MailboxRoom:
    """Finds room in mailboxes. `memory` counts the bodies whose senders wait."""

    def __init__(self, dispatcher: Dispatcher, dead_letters: DeadLetterQueue, memory: BodyMemory) -> None:
        self._dispatcher = dispatcher
        self._loop = dispatcher.loop
        self._dead_letters = dead_letters
        self._memory = memory
        self._timers: dict[Process, tuple[float, asyncio.TimerHandle]] = {}  # of full mailboxes: when, and the timer

    def make(self, recipient: Process, box: Mailbox, size: int = 0) -> bool:
        """Whether a body of `size` bytes fits into `box`, after the messages past their deadline were dropped."""
        if box.has_room(size):
            return True
        if self._loop.time() < box.next_deadline:
            return False
        self._drop_expired(recipient, box)
        return box.has_room(size)

    async def wait(self, recipient: Process, size: int, timer: Timer | None = None, call: Call | None = None) -> None:
        """Wait until a body of `size` bytes may be put into the mailbox of `recipient`, or the mailbox is closed.

        Raises `DeadlockDetected`, and with `timer`, that of `call`, `TimedOut`. The caller puts its message, or raises
        an error if the mailbox is closed, and then calls `used`.
        """
        box, thread = recipient.open_mailbox(), self._dispatcher.running
        self._memory.take(size)  # a body that waits takes memory, too
        try:
            while not self.make(recipient, box, size):
                if timer is not None and timer.expired:  # also before the first wait
                    assert call is not None
                    what = f"process {call.to} had no room for the call within {call.timeout} s"
                    raise TimedOut(what, to=call.to, timeout=call.timeout)
                self._watch(recipient, box)
                if await wait_for_room(box, thread, RoomIn(recipient), size):
                    break
        finally:
            self._memory.used -= size

    def used(self, recipient: Process, box: Mailbox) -> None:
        """A sender that had waited has put its message, or has failed to: then the next one gets the room."""
        box.wake_senders()
        if box.has_senders:
            self._watch(recipient, box)

    def process_ended(self, process: Process) -> None:
        """No sender waits for a process that has ended."""
        if self._timers and (timer := self._timers.pop(process, None)) is not None:
            timer[1].cancel()

    def _drop_expired(self, recipient: Process, box: Mailbox) -> None:
        now, soonest = self._loop.time(), inf
        expired = []
        for message in box.peek():
            if message.deadline is not None:
                if now >= message.deadline:
                    expired.append(message)
                else:
                    soonest = min(soonest, message.deadline)
        box.next_deadline = soonest
        for message in expired:
            box.discard(message)
            self._dead_letters.expire(recipient, message)

    def _watch(self, recipient: Process, box: Mailbox) -> None:
        """Look for expired messages in `box`, for whose room a sender waits, when the next deadline passes."""
        due = box.next_deadline
        timer = self._timers.get(recipient)
        if due == inf or (timer is not None and timer[0] <= due):
            return
        if timer is not None:
            timer[1].cancel()
        when = max(due, self._loop.time() + PACE * box.taken)
        self._timers[recipient] = due, self._loop.call_at(when, self._due, recipient)

    def _due(self, recipient: Process) -> None:
        del self._timers[recipient]
        box = recipient.mailbox
        if box is None or not box.has_senders:
            return
        self._drop_expired(recipient, box)
        if not box.has_senders:
            return
        self._watch(recipient, box)
        if box.next_deadline == inf:  # it was the last deadline, so now only receivers can make room
            for thread in box.senders:
                deadlock.look_again(cast("Thread", thread))


def mailbox_full(recipient: Process, box: Mailbox) -> MailboxFull:
    """The error for a sender that does not wait for room."""
    return MailboxFull(
        f"the mailbox of process {recipient.pid} is full (it has {box.taken} of {box.capacity} messages, with "
        f"{box.bytes} of {box.byte_capacity} bytes in large bodies); wait for room (wait=True) or try again later",
        to=recipient.pid,
        capacity=box.capacity,
    )


async def wait_for_room(box: Mailbox, thread: Thread, why: ThreadWait, size: int = 0) -> bool:
    """Wait in line for room for a body of `size` bytes in `box`. Raises `DeadlockDetected`.

    Returns True if the room is reserved for the caller: it must now put its message, unless the mailbox has been
    `closed`. Returns False if something else woke the thread.
    """
    box.add_sender(thread, size)
    thread.waits_for = why
    try:
        deadlock.check(thread)
        await PARK
    except BaseException:
        if box.end_send_wait(thread):
            box.pass_on_place(size)
        raise
    reserved = box.end_send_wait(thread)
    if reserved:
        box.use_place(size)
    return reserved
