"""Messages of durable processes, whose ids derive from the calls, so that no message arrives or is answered twice.

The replay calls the handlers here for calls that have no record. The reply to a durable caller is written in the
transaction that records `Reply`, and deleted in the transaction that records `Call`, so the two calls need no common
transaction. It never persists a message to a process that is not durable: `kernel.messages` delivers such a message.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from ipc.codec import decode
from ipc.errors import InvalidCall, TimedOut
from ipc.messages import Message
from ipc.syscalls import DOWN, Call, Publish, Receive, Reply, Send
from kernel.core.answers import UNANSWERED, Unanswerable, check_reply, mark_caller_gone
from kernel.core.fiber import PARK
from kernel.core.mailbox import Mailbox
from kernel.core.plain_wait import PlainWait
from kernel.core.process import PendingCalls, Process, Thread
from kernel.core.timers import Timer
from kernel.dispatch import deadlock
from kernel.durable.commits import Commits
from kernel.durable.history import CallHistory, CallKey, history_of
from kernel.durable.pending_restarts import PendingRestarts
from kernel.durable.recorded_call import raw
from kernel.journal.changes import DropReply, PutLastDelivered, PutReply
from kernel.lib.validation import check_timeout
from kernel.messages.body_size import counted_size
from kernel.messages.messaging import Messaging
from kernel.messages.publications import DELIVERIES
from kernel.messages.publish import Publisher
from kernel.messages.room import mailbox_full
from kernel.messages.validation import build_message

REPLY = PlainWait("reply", "reply", "waiting for a reply", "the called process replies or ends")


class DurableMessages:
    """Makes the calls `Send`, `Call`, `Reply` and `Publish`. Holds the replies that durable callers are yet to take."""

    def __init__(
        self,
        messaging: Messaging,
        publication: Publisher,
        commits: Commits,
        alive: dict[int, Process],
        pending_restarts: PendingRestarts,
    ) -> None:
        self._messaging = messaging
        self._publication = publication
        self._commits = commits
        self._alive = alive
        self._pending_restarts = pending_restarts
        self._replies: dict[int, tuple[int, bytes]] = {}  # by id of the call: pid of the caller, encoded body
        self._recipients: dict[int, set[int]] = {}  # by pid of a sender: pids that have it in `CallHistory.delivered`

    # ---- calls

    async def send(self, process: Process, call: Send, key: CallKey) -> int:
        recipient = self._messaging.recipient(call.to)
        if recipient.durable is None:
            self._commits.reserve_pid(recipient.pid)
            answer = self._messaging.send(process, call)
            return answer if isinstance(answer, int) else await answer
        number = history_of(process).message_id(key)
        if self._is_new(process, recipient, key):
            message = build_message(process, recipient, call, number)
            box = recipient.open_mailbox()
            if not call.wait and not self._messaging.make_room(recipient, box, counted_size(message.body)):
                raise mailbox_full(recipient, box)
            await self._put(process, recipient, message, key)
        return number

    async def publish(self, process: Process, call: Publish, key: CallKey) -> int:
        count = 0
        search, call = self._publication.prepare(call)
        while not search.advance():
            await asyncio.sleep(0)
        for position, recipient in enumerate(search.found):
            if position % DELIVERIES == DELIVERIES - 1:
                await asyncio.sleep(0)  # the subscribers may be many
            if recipient.ended:
                continue
            if recipient.durable is None:
                number = self._messaging.next_id()
            elif self._is_new(process, recipient, key):
                number = history_of(process).message_id(key, recipient.pid)
                self._note_delivery(process, recipient, key)
            else:
                count += 1
                continue
            message = build_message(process, recipient, call, number)
            count += self._publication.offer(recipient, message, len(search.found)) is not False
        return count

    async def call(self, process: Process, call: Call, key: CallKey) -> Any:
        number = history_of(process).message_id(key)
        if number in self._replies:
            return self._take_reply(number)
        recipient = self._messaging.recipient(call.to)
        if recipient.durable is None:
            self._commits.reserve_pid(recipient.pid)
            return await self._messaging.call(process, call)
        if recipient is process:
            raise InvalidCall(f"process {process.pid} calls itself, and would wait for its own reply forever")
        thread = cast("Thread", asyncio.current_task())
        timer = Timer(thread, check_timeout(call.timeout))
        thread.answer = UNANSWERED
        try:
            await self._deliver_call(process, recipient, call, key, number, timer)
            while thread.answer is UNANSWERED:
                thread.waits_for = REPLY if recipient.pending_calls is None else recipient.pending_calls
                if call.timeout is None:
                    deadlock.check(thread)
                elif timer.expired:
                    raise TimedOut(
                        f"process {call.to} did not reply within {call.timeout} s", to=call.to, timeout=call.timeout
                    )
                await PARK
        except BaseException:
            answer, thread.answer = thread.answer, None
            if number not in self._replies:
                mark_caller_gone(recipient, number)
                self._messaging.inheritance.changed(recipient, thread)
                history_of(process).abandoned.add(number)
            elif not process.dying:  # the thread was cancelled between the arrival of the reply and its next step
                self._take_reply(number)
            raise
        finally:
            answer, thread.answer = thread.answer, None
            timer.cancel()
        if type(answer) is Unanswerable:
            raise answer.error
        return self._take_reply(number)

    async def reply(self, process: Process, call: Reply, key: CallKey) -> None:
        """Persist the reply if the caller is durable, even if the caller has not restarted yet."""
        if self._alive.get(call.to) is None and call.to not in self._pending_restarts.pids:
            return self._messaging.reply(process, call)
        caller = self._alive.get(call.to)
        late = caller is not None and caller.durable is not None and call.message in history_of(caller).abandoned
        if late or (caller is not None and caller.durable is None):
            return self._messaging.reply(process, call)
        pending_calls = process.pending_calls
        if not pending_calls or call.message not in pending_calls:
            check_reply(process, call)
            return self._messaging.reply(process, call)
        body = raw(call.body)
        thread = pending_calls.pop(call.message)
        process.messages_sent += 1
        self._replies[call.message] = call.to, bytes(body)
        self._commits.persist(PutReply(call.message, call.to, bytes(body)))
        if thread is not None:
            thread.answer = body
            thread.wake()
            self._messaging.inheritance.changed(process, thread)
        return None

    # ---- after a call was answered from its record

    async def restore_receive(self, process: Process, call: Receive, message: Message) -> None:
        """Add a call to the pending calls; note a "down" message, so that it is not delivered again."""
        process.messages_received += 1
        if message.type == DOWN:
            history_of(process).downs_received.add(message.correlation)
        if message.correlation == message.id:
            self.add_pending_call(process, message.id)

    async def restore_reply(self, process: Process, call: Reply, answer: None) -> None:
        if process.pending_calls:
            process.pending_calls.pop(call.message, None)

    def add_pending_call(self, process: Process, message: int) -> None:
        """Let `process` reply to a call of a previous run. A durable caller repeats the call; others may be gone."""
        if process.pending_calls is None:
            process.pending_calls = PendingCalls(process)
        process.pending_calls.setdefault(message, None)

    def count_restored(self, box: Mailbox, message: Message) -> None:
        """Count the bytes of a message of a previous run, even if they exceed the present limits."""
        size, memory = counted_size(message.body), self._messaging.memory
        if size:
            memory.used += size
            box.charge(message.id, size, size, memory)

    def load_replies(self, pid: int, replies: list[tuple[int, bytes]]) -> None:
        self._replies.update((number, (pid, body)) for number, body in replies)

    def load_delivered(self, history: CallHistory) -> None:
        for sender in history.delivered:
            self._recipients.setdefault(sender, set()).add(history.pid)

    def process_ended(self, process: Process) -> None:
        history = history_of(process)
        for sender in history.delivered:
            recipients = self._recipients[sender]
            recipients.discard(process.pid)
            if not recipients:
                del self._recipients[sender]
        history.delivered = {}
        for pid in self._recipients.pop(process.pid, ()):  # the ended process sends no more
            recipient = self._alive.get(pid)
            if recipient is not None:
                history_of(recipient).delivered.pop(process.pid, None)
        for number in [number for number, (pid, _) in self._replies.items() if pid == process.pid]:
            del self._replies[number]

    # ---- inside

    async def _deliver_call(
        self, process: Process, recipient: Process, call: Call, key: CallKey, number: int, timer: Timer
    ) -> None:
        """Put the call into the mailbox, unless a previous run did, and register this thread as its caller."""
        if not self._is_new(process, recipient, key):
            self._register_caller(process, recipient, number)
            return
        message = build_message(process, recipient, call, number, timer.until)
        await self._put(process, recipient, message, key, timer, call)
        self._register_caller(process, recipient, number)

    async def _put(
        self,
        process: Process,
        recipient: Process,
        message: Message,
        key: CallKey,
        timer: Timer | None = None,
        call: Call | None = None,
    ) -> None:
        """Put `message` into the mailbox of `recipient`; wait for room first if it is full."""
        box, size = recipient.open_mailbox(), counted_size(message.body)
        await self._messaging.room.wait(recipient, size, timer, call)
        self._messaging.put_reserved(recipient, box, message, size)
        self._note_delivery(process, recipient, key)

    def _register_caller(self, process: Process, recipient: Process, number: int) -> None:
        thread = cast("Thread", asyncio.current_task())
        if recipient.pending_calls is None:
            recipient.pending_calls = PendingCalls(recipient)
        recipient.pending_calls[number] = thread
        thread.waits_for = recipient.pending_calls
        self._messaging.inheritance.changed(recipient, thread)

    def _take_reply(self, number: int) -> Any:
        """Return the reply to call `number`, and delete the reply in the transaction that records the call."""
        _, body = self._replies.pop(number)
        self._commits.persist(DropReply(number))
        return decode(body)

    def _is_new(self, process: Process, recipient: Process, key: CallKey) -> bool:
        """Whether the message of this call was never put into the mailbox of the durable `recipient`."""
        last = history_of(recipient).delivered.get(process.pid, {}).get(key.series)
        return last is None or last < (key.epoch, key.number)

    def _note_delivery(self, process: Process, recipient: Process, key: CallKey) -> None:
        history_of(recipient).delivered.setdefault(process.pid, {})[key.series] = key.epoch, key.number
        self._recipients.setdefault(process.pid, set()).add(recipient.pid)
        self._commits.persist(PutLastDelivered(recipient.pid, process.pid, key.series, key.epoch, key.number))
