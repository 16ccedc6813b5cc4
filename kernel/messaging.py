"""The message subsystem: send, receive, call and reply between the mailboxes of processes.

Its handlers are called by the gate. A message that cannot be delivered or read in time is a dead letter: counted and
logged, never dropped in silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import structlog

from ipc.codec import isolate
from ipc.errors import InvalidCall, LlmosError, MailboxFull, NotACall, TimedOut, UnknownProcess
from ipc.messages import Message
from ipc.syscalls import Call, Receive, Reply, Send
from kernel.gate import Gate
from kernel.mailbox import Mailbox
from kernel.process import Process, ProcessTable
from kernel.thread import PARK, Alarm, Thread
from kernel.waiting import ReplyOf, RoomIn

LATE_REPLIES = 1000  # calls that timed out and may still be answered, remembered per process

log = structlog.get_logger("kernel.messaging")


class PendingCall:
    """A thread that waits for a reply; the answer lies here until the thread looks."""

    __slots__ = ("done", "error", "thread", "value")

    def __init__(self, thread: Thread) -> None:
        self.thread = thread
        self.done = False
        self.value: Any = None
        self.error: LlmosError | None = None

    def finish(self, value: Any = None, error: LlmosError | None = None) -> None:
        self.done, self.value, self.error = True, value, error
        self.thread.wake()


class Messaging:
    """Routes messages by pid."""

    def __init__(self, table: ProcessTable, gate: Gate, loop: asyncio.AbstractEventLoop) -> None:
        self._table = table
        self._loop = loop
        self._last_id = 0
        self.dead_letters = 0
        gate.register({Send: self.send, Receive: self.receive, Call: self.call, Reply: self.reply})

    def send(self, process: Process, call: Send) -> int | Coroutine[Any, Any, int]:
        recipient = self._table.get(call.to)
        deadline = None if call.lifetime is None else self._loop.time() + call.lifetime
        message = self._message(process, recipient, call, 0, deadline)
        box = recipient.box()
        if not box.full:
            box.put(message)
            return message.id
        if not call.wait:
            raise MailboxFull(
                f"the mailbox of process {call.to} is full ({box.capacity} messages); "
                "wait for room (wait=True) or try again later",
                to=call.to,
                capacity=box.capacity,
            )
        return self._send_later(box, message, RoomIn(recipient))

    async def _send_later(self, box: Mailbox, message: Message, room: RoomIn) -> int:
        # A call from a socket gets here one turn after it saw the mailbox full; and other things wake a thread, too.
        while box.full and not await box.wait_for_room(room):
            pass
        if box.closed:
            raise self._table.unknown(message.recipient)
        box.put(message)
        return message.id

    def receive(self, process: Process, call: Receive) -> Message | Coroutine[Any, Any, Message]:
        message = self._take(process)
        return message if message is not None else self._receive_later(process, call.timeout)

    async def _receive_later(self, process: Process, timeout: float | None) -> Message:
        box = process.box()
        thread = cast(Thread, asyncio.current_task())
        alarm = Alarm(thread, None if timeout is None else self._loop.time() + timeout)
        try:
            while (message := self._take(process)) is None:
                if alarm.rung:
                    raise TimedOut(f"no message within {timeout} s", timeout=timeout)
                await box.wait_for_message()
            return message
        finally:
            alarm.cancel()

    def call(self, process: Process, call: Call) -> Coroutine[Any, Any, Any]:
        recipient = self._table.get(call.to)
        if recipient is process:
            raise InvalidCall(f"process {process.pid} calls itself, and would wait for its own reply for ever")
        self._last_id += 1
        return self._call(process, recipient, call, self._last_id)

    async def _call(self, process: Process, recipient: Process, call: Call, correlation: int) -> Any:
        thread = cast(Thread, asyncio.current_task())
        pending = PendingCall(thread)
        until = None if call.timeout is None else self._loop.time() + call.timeout
        alarm = Alarm(thread, until)
        message = self._message(process, recipient, call, correlation, until)
        if process.pending_calls is None:
            process.pending_calls = {}
        process.pending_calls[correlation] = pending
        try:
            box, room = recipient.box(), RoomIn(recipient)
            while box.full and not await box.wait_for_room(room):
                self._check_time(alarm, call, "had no room for the call")
            if box.closed or recipient.ended:
                raise self._table.unknown(call.to)
            if recipient.owed is None:
                recipient.owed = {}
            recipient.owed[correlation] = process
            box.put(message)
            awaited = ReplyOf(recipient)
            while not pending.done:
                self._check_time(alarm, call, "did not reply")
                thread.waits_for = awaited
                await PARK
            if pending.error is not None:
                raise pending.error
            return pending.value
        finally:
            del process.pending_calls[correlation]
            alarm.cancel()
            if not pending.done:
                self._forget_caller(recipient, correlation)

    def reply(self, process: Process, call: Reply) -> None:
        owed = process.owed
        if owed is None or call.correlation not in owed:
            raise NotACall(f"message {call.correlation} of process {call.to} waits for no reply, or was answered")
        value = isolate(call.body)
        caller = owed.pop(call.correlation)
        process.usage.messages_sent += 1
        pending = (caller.pending_calls or {}).get(call.correlation) if caller is not None else None
        if caller is None or pending is None:
            self._bury("the caller no longer waits", process.pid, call.to)
        else:
            caller.usage.messages_received += 1
            pending.finish(value)

    def process_ended(self, process: Process) -> None:
        """Give back what `process` leaves behind: unread messages are dead letters, callers get an error."""
        for message in process.mailbox.close() if process.mailbox is not None else ():
            self._bury("the recipient ended", message.sender, message.recipient)
        for correlation, caller in (process.owed or {}).items():
            pending = (caller.pending_calls or {}).get(correlation) if caller is not None else None
            if pending is not None:
                error = UnknownProcess(f"process {process.pid} ended before it replied", pid=process.pid)
                pending.finish(error=error)
        process.owed = None

    def _check_time(self, alarm: Alarm, call: Call, what: str) -> None:
        if alarm.rung:
            raise TimedOut(f"process {call.to} {what} within {call.timeout} s", to=call.to, timeout=call.timeout)

    def _take(self, process: Process) -> Message | None:
        """The next message that is not past its deadline."""
        box = process.mailbox
        while box is not None and box.count:
            message = box.take()
            if message.deadline is not None and self._loop.time() >= message.deadline:
                self._bury("its deadline passed", message.sender, message.recipient)
                continue
            process.usage.messages_received += 1
            return message
        return None

    def _message(
        self, process: Process, recipient: Process, call: Send | Call, correlation: int, deadline: float | None
    ) -> Message:
        process.usage.messages_sent += 1
        self._last_id += 1
        return Message(
            self._last_id,
            call.type,
            process.pid,
            recipient.pid,
            call.priority,
            correlation,
            deadline,
            isolate(call.body),
        )

    def _forget_caller(self, recipient: Process, correlation: int) -> None:
        owed = recipient.owed
        if owed is not None and correlation in owed:
            owed[correlation] = None
            if len(owed) > LATE_REPLIES:
                del owed[correlation]

    def _bury(self, why: str, sender: int, recipient: int) -> None:
        self.dead_letters += 1
        log.debug("dead letter", why=why, sender=sender, recipient=recipient)
