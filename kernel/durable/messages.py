"""Messages of durable processes: with ids made from their calls, so that none is delivered, taken or answered twice.

Its handlers are called by the replay, for a call that was not completed in an earlier life. What goes to processes that
are not durable goes the way of all messages, and lives in memory alone.

A reply to a durable caller is kept in the transaction of the call `Reply`, and dropped in that of the `Call` which
takes it. So the two of them need no common transaction: whichever was kept when the daemon died, the other finds it.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from ipc.codec import decode
from ipc.errors import InvalidCall, MailboxFull, NotACall, TimedOut
from ipc.messages import Message
from ipc.syscalls import DOWN, Call, Publish, Receive, Reply, Send
from kernel.core.answers import UNANSWERED, Unanswerable, forget_caller
from kernel.core.fiber import PARK
from kernel.core.process import PendingCalls, Process, Thread
from kernel.core.timers import Timer
from kernel.core.waits import RoomIn
from kernel.dispatch import deadlock
from kernel.durable.commits import Commits
from kernel.durable.history import CallHistory, Key, history_of
from kernel.durable.pending_restarts import PendingRestarts
from kernel.durable.recorded_call import raw
from kernel.journal.changes import DropReply, PutLastDelivered, PutReply
from kernel.lib.validation import check_timeout
from kernel.messages.messaging import Messaging, wait_for_room
from kernel.messages.publish import Publisher
from kernel.messages.validation import envelope


class DurableMessages:
    """Send, call, reply and publish. It keeps the replies that durable callers have not taken yet, by their calls."""

    def __init__(
        self,
        messaging: Messaging,
        publication: Publisher,
        commits: Commits,
        alive: dict[int, Process],
        arrivals: PendingRestarts,
    ) -> None:
        self._messaging = messaging
        self._publication = publication
        self._commits = commits
        self._alive = alive
        self._arrivals = arrivals
        self._replies: dict[int, tuple[int, bytes]] = {}  # caller and msgpack of the body
        self._reached: dict[int, set[int]] = {}  # by pid of a sender: who knows how far its messages have come

    # ---- calls

    async def send(self, process: Process, call: Send, key: Key) -> int:
        recipient = self._messaging.recipient(call.to)
        if recipient.durable is None:
            self._commits.remember(recipient.pid)
            answer = self._messaging.send(process, call)
            return answer if isinstance(answer, int) else await answer
        number = history_of(process).message(key)
        if self._is_new(process, recipient, key):
            message = envelope(process, recipient, call, number)
            if not call.wait and recipient.box().full and not self._messaging.make_room(recipient, recipient.box()):
                raise MailboxFull(
                    f"the mailbox of process {recipient.pid} is full ({recipient.box().capacity} messages); wait for "
                    "room (wait=True) or try again later",
                    to=recipient.pid,
                    capacity=recipient.box().capacity,
                )
            await self._put(process, recipient, message, key)
        return number

    async def publish(self, process: Process, call: Publish, key: Key) -> int:
        count = 0
        subscribers, call = self._publication.publication(call)
        for recipient in subscribers:
            if recipient.durable is None:
                number = self._messaging.next_id()
            elif self._is_new(process, recipient, key):
                number = history_of(process).message(key, recipient.pid)
                self._came(process, recipient, key)
            else:
                count += 1
                continue
            message = envelope(process, recipient, call, number)
            count += self._publication.offer(recipient, message) is not False
        return count

    async def call(self, process: Process, call: Call, key: Key) -> Any:
        number = history_of(process).message(key)
        if number in self._replies:
            return self._take(number)
        recipient = self._messaging.recipient(call.to)
        if recipient.durable is None:
            self._commits.remember(recipient.pid)
            return await self._messaging.call(process, call)
        if recipient is process:
            raise InvalidCall(f"process {process.pid} calls itself, and would wait for its own reply for ever")
        thread = cast("Thread", asyncio.current_task())
        timer = Timer(thread, check_timeout(call.timeout))
        thread.answer = UNANSWERED
        try:
            await self._ask(process, recipient, call, key, number, timer)
            while thread.answer is UNANSWERED:
                thread.waits_for = "reply" if recipient.pending_calls is None else recipient.pending_calls
                if call.timeout is None:
                    deadlock.check(thread)
                elif timer.rung:
                    raise _late(call, "did not reply")
                await PARK
        except BaseException:
            if number not in self._replies:
                forget_caller(recipient, number)
                history_of(process).given_up.add(number)
            elif not process.dying:  # it was answered, and cancelled before it looked
                self._take(number)
            raise
        finally:
            answer, thread.answer = thread.answer, None
            timer.cancel()
        if type(answer) is Unanswerable:
            raise answer.error
        return self._take(number)

    async def reply(self, process: Process, call: Reply, key: Key) -> None:
        """The reply is kept if the caller is durable; it need not have begun again yet."""
        if self._alive.get(call.to) is None and call.to not in self._arrivals.pids:
            return self._messaging.reply(process, call)
        caller = self._alive.get(call.to)
        late = caller is not None and caller.durable is not None and call.message in history_of(caller).given_up
        if late or (caller is not None and caller.durable is None):
            return self._messaging.reply(process, call)
        pending_calls = process.pending_calls
        if not pending_calls or call.message not in pending_calls:
            raise NotACall(f"message {call.message} of process {call.to} waits for no reply, or was answered")
        body = raw(call.body)
        thread = pending_calls.pop(call.message)
        process.messages_sent += 1
        self._replies[call.message] = call.to, bytes(body)
        self._commits.keep(PutReply(call.message, call.to, bytes(body)))
        if thread is not None:
            thread.answer = body
            thread.wake()
        return None

    # ---- of a call that was completed before

    async def received(self, process: Process, call: Receive, message: Message) -> None:
        """A message that was received in an earlier life may still want its reply; an end is not to be told again."""
        process.messages_received += 1
        if message.type == DOWN:
            history_of(process).heard.add(message.correlation)
        if message.correlation == message.id:
            self.owe(process, message.id)

    async def replied(self, process: Process, call: Reply, answer: None) -> None:
        if process.pending_calls:
            process.pending_calls.pop(call.message, None)

    def owe(self, process: Process, message: int) -> None:
        """Whoever made this call of an earlier life may be gone; if it is durable it asks again."""
        if process.pending_calls is None:
            process.pending_calls = PendingCalls(process)
        process.pending_calls.setdefault(message, None)

    def restore_replies(self, pid: int, replies: list[tuple[int, bytes]]) -> None:
        self._replies.update((number, (pid, body)) for number, body in replies)

    def restore_delivered(self, history: CallHistory) -> None:
        for sender in history.delivered:
            self._reached.setdefault(sender, set()).add(history.pid)

    def process_ended(self, process: Process) -> None:
        history = history_of(process)
        for sender in history.delivered:
            reached = self._reached[sender]
            reached.discard(process.pid)
            if not reached:
                del self._reached[sender]
        history.delivered = {}
        for pid in self._reached.pop(process.pid, ()):  # it says nothing any more
            recipient = self._alive.get(pid)
            if recipient is not None:
                history_of(recipient).delivered.pop(process.pid, None)
        for number in [number for number, (pid, _) in self._replies.items() if pid == process.pid]:
            del self._replies[number]

    # ---- inside

    async def _ask(self, process: Process, recipient: Process, call: Call, key: Key, number: int, timer: Timer) -> None:
        """Put the question into the mailbox, unless an earlier life did, and be the one that waits for the answer."""
        if not self._is_new(process, recipient, key):
            self._wait_in(process, recipient, number)
            return
        message = envelope(process, recipient, call, number, timer.until)
        await self._put(process, recipient, message, key, timer)
        self._wait_in(process, recipient, number)

    async def _put(
        self, process: Process, recipient: Process, message: Message, key: Key, timer: Timer | None = None
    ) -> None:
        """Put `message` into the mailbox of `recipient`, waiting for room."""
        box = recipient.box()
        while box.full and not self._messaging.make_room(recipient, box):
            if timer is not None and timer.rung:
                raise TimedOut(f"process {recipient.pid} had no room for the call in time", to=recipient.pid)
            if await wait_for_room(box, cast("Thread", asyncio.current_task()), RoomIn(recipient)):
                break
        if box.closed:
            raise self._messaging.unknown(recipient.pid)
        box.put(message)
        self._came(process, recipient, key)

    def _wait_in(self, process: Process, recipient: Process, number: int) -> None:
        thread = cast("Thread", asyncio.current_task())
        if recipient.pending_calls is None:
            recipient.pending_calls = PendingCalls(recipient)
        recipient.pending_calls[number] = thread
        if thread.priority > recipient.priority or process.pending_calls:
            self._messaging.urgency_changed(recipient)

    def _take(self, number: int) -> Any:
        """The reply to call `number`: it is dropped in the transaction that keeps the call."""
        _, body = self._replies.pop(number)
        self._commits.keep(DropReply(number))
        return decode(body)

    def _is_new(self, process: Process, recipient: Process, key: Key) -> bool:
        """Whether the message of this call has not been in the mailbox of the durable `recipient` yet."""
        last = history_of(recipient).delivered.get(process.pid, {}).get(key.sequence)
        return last is None or last < (key.epoch, key.number)

    def _came(self, process: Process, recipient: Process, key: Key) -> None:
        history_of(recipient).delivered.setdefault(process.pid, {})[key.sequence] = key.epoch, key.number
        self._reached.setdefault(process.pid, set()).add(recipient.pid)
        self._commits.keep(PutLastDelivered(recipient.pid, process.pid, key.sequence, key.epoch, key.number))


def _late(call: Call, what: str) -> TimedOut:
    return TimedOut(f"process {call.to} {what} within {call.timeout} s", to=call.to, timeout=call.timeout)
