"""The message subsystem: send, call and reply between processes, and the kernel's own messages.

The gate calls its handlers. `receive` takes messages out of mailboxes, and `publish` sends them to subscribers. This
module never drops a message silently: a message that expires, or whose recipient ends first, becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from ipc.codec import PLAIN, isolate, reveal
from ipc.errors import InvalidCall, TimedOut, UnknownProcess
from ipc.messages import Message
from ipc.syscalls import Call, Reply, Send
from kernel.core.answers import UNANSWERED, Unanswerable, check_reply, mark_caller_gone
from kernel.core.body_memory import BodyMemory
from kernel.core.fiber import PARK
from kernel.core.mailbox import CONTROL, Mailbox
from kernel.core.process import PendingCalls, Process
from kernel.core.process_table import ProcessTable
from kernel.core.timers import Timer
from kernel.dispatch import deadlock
from kernel.dispatch.dispatcher import Dispatcher
from kernel.dispatch.priority_inheritance import PriorityInheritance
from kernel.gate import Gate
from kernel.lib.call_checks import check_call
from kernel.lib.validation import check_timeout
from kernel.messages.body_size import counted_size
from kernel.messages.dead_letters import DeadLetterQueue
from kernel.messages.names import NameRegistry
from kernel.messages.room import MailboxRoom, mailbox_full
from kernel.messages.validation import (
    MAX_INT,
    MIN_INT,
    SHORT_TEXT,
    SMALL_TYPES,
    UNTYPED,
    ZERO,
    check_heading,
    deadline_after,
    prepare,
)

if TYPE_CHECKING:
    from kernel.core.storage_receipt import StorageReceipt

LONG = 1e9  # seconds; `call` accepts a float up to this as its timeout without `check_timeout`


class Messaging:
    """Routes messages by pid and by name."""

    def __init__(
        self, table: ProcessTable, gate: Gate, dispatcher: Dispatcher, names: NameRegistry, body_bytes: int
    ) -> None:
        self.memory = BodyMemory(body_bytes)
        self._table = table
        self._alive = table.alive
        self._dispatcher = dispatcher
        self.loop = self._loop = dispatcher.loop
        self._names = names
        self._last_id = 0
        self.inheritance = PriorityInheritance()
        self.dead_letters = DeadLetterQueue()
        self.room = room = MailboxRoom(dispatcher, self.dead_letters, self.memory)
        self.make_room = room.make  # a part of it, since publications and durable processes use it, too
        gate.register({Send: self.send, Call: self.call, Reply: self.reply})

    # ---- send

    def send(self, process: Process, call: Send) -> int | Coroutine[Any, Any, int]:
        to, kind = call.to, call.type
        if type(to) is not int or kind is not UNTYPED or call.wait is not True:
            check_call(call)
            to, kind = call.to, call.type
        recipient = self._alive.get(to) or self.recipient(to)  # type: ignore[arg-type]
        deadline = None if call.lifetime is None else deadline_after(call.lifetime, self._loop)
        body, priority = call.body, call.priority
        of = type(body)
        if recipient.accepts is not None or not (
            (of is int and MIN_INT <= body <= MAX_INT)
            or (of is str and len(body) <= SHORT_TEXT and body.isascii())
            or of in SMALL_TYPES
        ):
            kind, body = prepare(recipient, kind, body)
            if size := counted_size(body):
                return self._send_large(process, recipient, call, kind, body, size)
        if kind is not UNTYPED or priority is not ZERO or call.correlation is not ZERO:
            check_heading(kind, priority, call.correlation)
        self._last_id = number = self._last_id + 1
        message = Message(number, kind, process.pid, recipient.pid, priority, call.correlation, deadline, body)
        process.messages_sent += 1
        box = recipient.mailbox
        if box is None:
            box = recipient.open_mailbox()
        if box.taken < box.open_places or self.make_room(recipient, box):
            receipt = box.put(message)
            return number if receipt is None else receipt.answer_after_commit(number)
        if call.wait:
            return self._send_later(box, message, recipient, 0)
        raise mailbox_full(recipient, box)

    def _send_large(
        self, process: Process, recipient: Process, call: Send, kind: str, body: Any, size: int
    ) -> int | Coroutine[Any, Any, int]:
        """The same for a body whose bytes the mailbox counts."""
        check_heading(kind, call.priority, call.correlation)
        deadline = None if call.lifetime is None else deadline_after(call.lifetime, self._loop)
        fields = (self.next_id(), kind, process.pid, recipient.pid, call.priority, call.correlation, deadline)
        message, box = Message(*fields, body), recipient.open_mailbox()
        process.messages_sent += 1
        if self.make_room(recipient, box, size):
            receipt = self.put_large(box, message, size)
            return message.id if receipt is None else receipt.answer_after_commit(message.id)
        if call.wait:
            return self._send_later(box, message, recipient, size)
        raise mailbox_full(recipient, box)

    def put_large(self, box: Mailbox, message: Message, size: int, share: int | None = None) -> StorageReceipt | None:
        """Put `message` into `box`, and count the `size` bytes of its body, in `memory` as `share` bytes if given.

        Raises `Busy`, and then nothing was put.
        """
        share = size if share is None else share
        self.memory.take(share)
        try:
            receipt = box.put(message)
        except BaseException:
            self.memory.used -= share
            raise
        box.charge(message.id, size, share, self.memory)
        return receipt

    async def _send_later(self, box: Mailbox, message: Message, recipient: Process, size: int) -> int:
        # A client's send runs as a thread of its own, one turn after the mailbox was full, so there may be room now.
        await self.room.wait(recipient, size)
        receipt = self.put_reserved(recipient, box, message, size)
        if receipt is not None:
            await receipt.answer_after_commit(None)
        return message.id

    def put_reserved(self, recipient: Process, box: Mailbox, message: Message, size: int) -> StorageReceipt | None:
        """Put `message` into room for which its sender has waited. If that fails, the next sender gets the room."""
        if box.closed:
            raise self._table.unknown(message.recipient)
        try:
            return box.put(message) if not size else self.put_large(box, message, size)
        finally:
            self.room.used(recipient, box)

    # ---- call and reply

    async def call(self, process: Process, call: Call) -> Any:  # noqa: C901 - one function for speed
        to, kind = call.to, call.type
        if type(to) is not int or kind is not UNTYPED:
            check_call(call)
            to, kind = call.to, call.type
        recipient = self._alive.get(to) or self.recipient(to)  # type: ignore[arg-type]
        if recipient is process:
            raise InvalidCall(f"process {process.pid} calls itself, and would wait for its own reply forever")
        body, priority = call.body, call.priority
        of = type(body)
        if recipient.accepts is not None or not (
            (of is int and MIN_INT <= body <= MAX_INT)
            or (of is str and len(body) <= SHORT_TEXT and body.isascii())
            or of in SMALL_TYPES
        ):
            kind, body = prepare(recipient, kind, body)
            size = counted_size(body)
        else:
            size = 0
        if kind is not UNTYPED or priority is not ZERO:
            check_heading(kind, priority)
        thread, timeout = self._dispatcher.running, call.timeout
        timer, until = None, None
        if timeout is not None and not (type(timeout) is float and 0 <= timeout <= LONG):
            check_call(call)
            timeout = check_timeout(call.timeout)
        if timeout is not None:
            timer = Timer(thread, timeout)
            until = timer.until
        self._last_id = number = self._last_id + 1
        message = Message(number, kind, process.pid, recipient.pid, priority, number, until, body)
        process.messages_sent += 1
        thread.answer = UNANSWERED
        try:
            box = recipient.mailbox or recipient.open_mailbox()
            if (size or box.taken >= box.open_places) and not self.make_room(recipient, box, size):
                await self.room.wait(recipient, size, timer, call)
                self.put_reserved(recipient, box, message, size)
            elif size:
                self.put_large(box, message, size)
            else:
                box.put(message)
            pending_calls = recipient.pending_calls
            if pending_calls is None:
                pending_calls = recipient.pending_calls = PendingCalls(recipient)
            pending_calls[number] = thread
            if thread.priority > recipient.lowest_priority or process.pending_calls:
                thread.waits_for = pending_calls
                self.inheritance.changed(recipient, thread)
            while thread.answer is UNANSWERED:
                thread.waits_for = pending_calls
                if timer is None:
                    deadlock.check(thread)  # only without a timeout: a timer ends the wait, so there is no knot
                elif timer.expired:
                    raise TimedOut(
                        f"process {call.to} did not reply within {call.timeout} s", to=call.to, timeout=call.timeout
                    )
                await PARK
        except BaseException:
            answer: Any = thread.answer
            thread.answer = None
            if answer is UNANSWERED:
                mark_caller_gone(recipient, number)
                if recipient.pending_calls is not None and recipient.pending_calls.inherited is not None:
                    self.inheritance.changed(recipient, thread)
            elif type(answer) is not Unanswerable:  # the reply arrived, but the caller was cancelled first
                self._bury_reply(recipient, process.pid, number, answer)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        answer = thread.answer
        thread.answer = None
        of = type(answer)
        if of is Unanswerable:
            raise answer.error
        process.messages_received += 1
        return reveal(answer) if of is msgspec.Raw and not process.is_client else answer

    def reply(self, process: Process, call: Reply) -> None:
        if type(call.message) is not int or type(call.to) is not int:
            check_call(call)
        pending_calls = process.pending_calls
        if not pending_calls or call.message not in pending_calls:
            return self._reply_late(process, call)
        value = call.body
        of = type(value)
        if of is str:
            if not value.isascii():
                value = isolate(value)
        elif not (of in PLAIN or (of is int and MIN_INT <= value <= MAX_INT)):
            value = isolate(value)
        caller = pending_calls.pop(call.message)
        process.messages_sent += 1
        if caller is None:
            self._bury_reply(process, call.to, call.message, value)
        else:
            caller.answer = value
            caller.wake()
            if pending_calls.inherited is not None:
                self.inheritance.changed(process, caller)
        return None

    def _reply_late(self, process: Process, call: Reply) -> None:
        """Reply to a call that was forgotten because its caller gave up. Raises `NotACall` if it is none."""
        check_reply(process, call)
        value = isolate(call.body)
        process.messages_sent += 1
        self._bury_reply(process, call.to, call.message, value)

    def _bury_reply(self, process: Process, caller: int, call: int, value: Any) -> None:
        """Bury the reply of `process` to message `call`, whose caller no longer waits."""
        late = Message(self.next_id(), "reply", process.pid, caller, 0, call, None, value)
        self.dead_letters.bury(late, "the caller no longer waits")

    # ---- messages of the kernel

    def notify(
        self,
        recipient: Process,
        type: str,  # noqa: A002 - the field's name
        body: Any,
        *,
        sender: int = 0,
        correlation: int = 0,
    ) -> None:
        """Put a message of the kernel into the mailbox of `recipient`, before all others, even if the mailbox is full.

        If `recipient` has ended, nothing happens.
        """
        box = recipient.open_mailbox()
        if not (box.closed or recipient.ended):
            box.put(Message(self.next_id(), type, sender, recipient.pid, CONTROL, correlation, None, isolate(body)))

    def take_back(self, recipient: Process, type: str, correlation: int) -> None:  # noqa: A002
        """Remove a message that `notify` put into the mailbox of `recipient`, if it is still there."""
        box = recipient.mailbox
        for message in () if box is None else tuple(box.peek()):
            if message.priority != CONTROL:
                return
            if message.type == type and message.correlation == correlation:
                assert box is not None
                box.discard(message)

    # ---- ends

    def process_ended(self, process: Process) -> None:
        """Turn the unread messages of `process` into dead letters, and fail the calls that it has not answered."""
        for message in process.mailbox.close() if process.mailbox is not None else ():
            self.dead_letters.bury(message, "the recipient ended")
        for caller in (process.pending_calls or {}).values():
            if caller is not None:
                error = UnknownProcess(f"process {process.pid} ended before it replied", pid=process.pid, ended=True)
                caller.answer = Unanswerable(error)
                caller.wake()
        process.pending_calls = None
        self.room.process_ended(process)

    # ---- inside

    def recipient(self, to: int | str) -> Process:
        """The living process with this name or pid. Raises `UnknownName`, `UnknownProcess`."""
        return self._names.find(to) if isinstance(to, str) else self._table.get(to)

    def start_ids_after(self, number: int) -> None:
        """Give new messages ids above `number`."""
        self._last_id = max(self._last_id, number)

    def unknown(self, pid: int) -> UnknownProcess:
        """The error to raise for a process that has ended."""
        return self._table.unknown(pid)

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id
