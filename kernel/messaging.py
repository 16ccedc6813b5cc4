"""The message subsystem: send, receive, call and reply between the mailboxes of processes, and publication on topics.

Its handlers are called by the gate. A message that cannot be delivered or read in time is a dead letter: kept, counted
and logged, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ipc.codec import PLAIN, isolate, reveal
from ipc.errors import (
    BadMessage,
    InvalidCall,
    LlmosError,
    MailboxFull,
    MalformedFrame,
    MessageTooLarge,
    NotACall,
    TimedOut,
    UnknownProcess,
)
from ipc.messages import Message
from ipc.syscalls import (
    ANY_MESSAGE,
    Call,
    DeadLetter,
    Heading,
    PeekMailbox,
    Publish,
    Receive,
    Reply,
    Send,
    Subscribe,
    Unsubscribe,
)
from ipc.syscalls import DeadLetters as ListDeadLetters
from kernel import deadlock
from kernel.alarms import Alarm
from kernel.checks import check_priority, check_seconds, check_text, check_timeout
from kernel.dead_letters import DeadLetters, heading, size
from kernel.declared import check
from kernel.dispatcher import Dispatcher
from kernel.gate import Gate
from kernel.mailbox import CONTROL, Mailbox
from kernel.names import NameRegistry
from kernel.process import Process, ProcessTable
from kernel.selection import Selection
from kernel.thread import PARK
from kernel.topics import Topics
from kernel.waiting import Owed, RoomIn

if TYPE_CHECKING:
    from kernel.mailbox import Receipt

LATE_REPLIES = 1000  # calls that timed out and may still be answered, remembered per process
MAX_TYPE = 4096  # characters of the type of a message, which may be a topic
MAX_BODY = 4 * 1024 * 1024  # bytes of an encoded body; what is larger belongs in shared memory

LONG = 1e9  # seconds; a time limit up to this needs no closer look
SHORT = MAX_BODY // 4  # characters, of which each takes at most 4 bytes
MAX_INT = 2**63 - 1  # msgpack carries no more
SMALL = frozenset({bool, float, type(None)})  # immutable and never too large
NONE, ZERO = "", 0  # of a heading: what is the very same object needs no check


UNANSWERED = object()


class Unanswerable:
    """The answer to a call that will get none: `error` says why."""

    __slots__ = ("error",)

    def __init__(self, error: LlmosError) -> None:
        self.error = error


class Messaging:
    """Routes messages by pid, by name and by topic."""

    def __init__(self, table: ProcessTable, gate: Gate, dispatcher: Dispatcher, names: NameRegistry) -> None:
        self._table = table
        self._alive = table.alive
        self._dispatcher = dispatcher
        self._loop = dispatcher.loop
        self._names = names
        self._topics = Topics()
        self._last_id = 0
        self.on_urgency: Callable[[Process], None] | None = None  # called when more or less urgent ones wait for it
        self.dead_letters = DeadLetters()
        gate.register(
            {
                Send: self.send,
                Receive: self.receive,
                Call: self.call,
                Reply: self.reply,
                Publish: self.publish,
                Subscribe: self.subscribe,
                Unsubscribe: self.unsubscribe,
                PeekMailbox: self.peek,
                ListDeadLetters: self.list_dead_letters,
            }
        )

    # ---- send and receive

    def send(self, process: Process, call: Send) -> int | Coroutine[Any, Any, int]:
        recipient = self._alive.get(call.to) or self.recipient(call.to)  # type: ignore[arg-type]
        deadline = None if call.lifetime is None else self._after(call.lifetime, "lifetime")
        kind, body, priority = call.type, call.body, call.priority
        of = type(body)
        if recipient.accepts is not None or not (
            (of is int and -MAX_INT <= body <= MAX_INT) or (of is str and len(body) <= SHORT) or of in SMALL
        ):
            kind, body = _checked(recipient, kind, body)
        if kind is not NONE or priority is not ZERO or call.correlation is not ZERO:
            _check_heading(kind, priority, call.correlation)
        self._last_id = number = self._last_id + 1
        message = Message(number, kind, process.pid, recipient.pid, priority, call.correlation, deadline, body)
        process.messages_sent += 1
        box = recipient.mailbox
        if box is None:
            box = recipient.box()
        if box.taken < box.capacity or self.make_room(recipient, box):
            receipt = box.put(message)
            return number if receipt is None else receipt.before(number)
        if call.wait:
            return self._send_later(box, message, recipient)
        raise MailboxFull(
            f"the mailbox of process {recipient.pid} is full ({box.capacity} messages); "
            "wait for room (wait=True) or try again later",
            to=recipient.pid,
            capacity=box.capacity,
        )

    async def _send_later(self, box: Mailbox, message: Message, recipient: Process) -> int:
        # A call from a socket gets here one turn after it saw the mailbox full; and other things wake a thread, too.
        thread = self._dispatcher.running
        while box.full and not await box.wait_for_room(thread, RoomIn(recipient)):
            pass
        if box.closed:
            raise self._table.unknown(message.recipient)
        receipt = box.put(message)
        if receipt is not None:
            await receipt.before(None)
        return message.id

    def receive(self, process: Process, call: Receive) -> Message | Coroutine[Any, Any, Message]:
        if call is not ANY_MESSAGE:
            return self._receive_selected(process, call)
        box = process.mailbox
        if box is None and process.listener is None:
            return self._receive_first(process)
        message = None if box is None else box.take()
        if message is None:
            return self._receive_next(process, box or process.box())
        if message.deadline is not None or type(message.body) is msgspec.Raw:
            message = self._fresh(process, message)
            if message is None:
                return self.receive(process, call)
        process.messages_received += 1
        return message

    def _receive_selected(self, process: Process, call: Receive) -> Message | Coroutine[Any, Any, Message]:
        timeout = check_timeout(call.timeout)
        selection = None
        if (call.type, call.sender, call.correlation, call.where) != (None, None, None, None):
            selection = Selection(call.type, call.sender, call.correlation, call.where)
        message = self._take(process, selection)
        return message if message is not None else self._receive_later(process, timeout, selection)

    async def _receive_first(self, process: Process) -> Message:
        """Wait for any message while there is no mailbox: it comes with the first one, and most never get any."""
        thread = self._dispatcher.running
        process.listener, thread.waits_for = thread, "message"
        try:
            await PARK
            message = self._take(process, None)
        finally:
            if process.mailbox is not None:
                process.mailbox.delist(thread)
            else:
                process.listener = None
        return message if message is not None else await self._receive_later(process, None, None)

    async def _receive_next(self, process: Process, box: Mailbox) -> Message:
        """Wait for any message. The same as `_receive_later`, spelled out for speed: most waits are of this kind."""
        thread = self._dispatcher.running
        while True:
            box.enlist(thread)
            try:
                await PARK
            except BaseException:
                box.delist(thread)
                raise
            message = box.take()
            if box.receiver is not None or box.selectors or box.called:
                box.delist(thread)
            if message is None:
                continue
            if message.deadline is not None or type(message.body) is msgspec.Raw:
                message = self._fresh(process, message)
                if message is None:
                    message = self._take(process, None)
                    if message is None:
                        continue
                    return message
            process.messages_received += 1
            return message

    async def _receive_later(self, process: Process, timeout: float | None, selection: Selection | None) -> Message:
        thread = self._dispatcher.running
        alarm = Alarm(thread, timeout)
        try:
            message = self._take(process, selection)
            while message is None:
                if alarm.rung:
                    what = "message" if selection is None else str(selection)
                    raise TimedOut(f"no {what} within {timeout} s", timeout=timeout)
                box = process.box()
                box.enlist(thread, selection)
                try:
                    await PARK
                    message = self._take(process, selection)
                finally:  # also if its own predicate fails
                    box.delist(thread)
            return message
        finally:
            alarm.cancel()

    def _take(self, process: Process, selection: Selection | None) -> Message | None:
        """The next message that is not past its deadline, its body as the receiver gets it."""
        box = process.mailbox
        while box is not None:
            message = box.take() if selection is None else box.select(selection)
            if message is None:
                return None
            fresh = self._fresh(process, message)
            if fresh is not None:
                process.messages_received += 1
                return fresh
        return None

    def _fresh(self, process: Process, message: Message) -> Message | None:
        """`message` with its body decoded, for a receiver in the loop. None: it is void, or cannot be decoded."""
        if message.deadline is not None and self._loop.time() >= message.deadline:
            self._expire(process, message)
            return None
        if type(message.body) is msgspec.Raw and not process.is_client:
            try:
                return msgspec.structs.replace(message, body=reveal(message.body))
            except MalformedFrame as error:
                self._refuse(process, message, error)
                return None
        return message

    def _expire(self, recipient: Process, message: Message) -> None:
        """The deadline of `message` has passed. Nobody will reply to it if it came by a call."""
        self.dead_letters.bury(message, "its deadline passed")
        if recipient.owed:
            recipient.owed.pop(message.id, None)

    def _refuse(self, recipient: Process, message: Message, error: MalformedFrame) -> None:
        """The body of `message` is not what it seemed when it was passed on: that is nothing to its receiver."""
        self.dead_letters.bury(message, "its body cannot be decoded")
        caller = recipient.owed.pop(message.id, None) if recipient.owed else None
        if caller is not None:
            what = f"the body for process {recipient.pid} cannot be decoded: {error.message}"
            caller.answer = Unanswerable(BadMessage(what))
            caller.wake()

    def make_room(self, recipient: Process, box: Mailbox) -> bool:
        """Whether dropping what is past its deadline makes room in a full mailbox."""
        now = self._loop.time()
        for message in [message for message in box.peek() if message.deadline is not None and now >= message.deadline]:
            box.discard(message)
            self._expire(recipient, message)
        return not box.full

    # ---- call and reply

    async def call(self, process: Process, call: Call) -> Any:  # noqa: C901 - in one piece for speed
        recipient = self._alive.get(call.to) or self.recipient(call.to)  # type: ignore[arg-type]
        if recipient is process:
            raise InvalidCall(f"process {process.pid} calls itself, and would wait for its own reply for ever")
        kind, body, priority = call.type, call.body, call.priority
        of = type(body)
        if recipient.accepts is not None or not (
            (of is int and -MAX_INT <= body <= MAX_INT) or (of is str and len(body) <= SHORT) or of in SMALL
        ):
            kind, body = _checked(recipient, kind, body)
        if kind is not NONE or priority is not ZERO:
            _check_heading(kind, priority)
        thread, timeout = self._dispatcher.running, call.timeout
        alarm, until = None, None
        if timeout is not None and not (type(timeout) is float and 0 <= timeout <= LONG):
            timeout = check_timeout(timeout)
        if timeout is not None:
            alarm = Alarm(thread, timeout)
            until = alarm.until
        self._last_id = number = self._last_id + 1
        message = Message(number, kind, process.pid, recipient.pid, priority, number, until, body)
        process.messages_sent += 1
        thread.answer = UNANSWERED
        try:
            box = recipient.mailbox or recipient.box()
            if box.taken >= box.capacity and not self.make_room(recipient, box):
                await self._wait_for_room(call, recipient, box, alarm)
            owed = recipient.owed
            if owed is None:
                owed = recipient.owed = Owed(recipient)
            owed[number] = thread
            box.put(message)
            if (thread.priority > recipient.priority or process.owed) and self.on_urgency is not None:
                self.on_urgency(recipient)
            while thread.answer is UNANSWERED:
                thread.waits_for = owed
                if alarm is None:
                    deadlock.check(thread)  # a thread with a timer set closes no knot
                elif alarm.rung:
                    _check_time(alarm, call, "did not reply")
                await PARK
        except BaseException:
            answer: Any = thread.answer
            thread.answer = None
            if answer is UNANSWERED:
                forget_caller(recipient, number)
            elif type(answer) is not Unanswerable:  # it was answered, and cancelled before it looked
                self._bury_reply(recipient, process.pid, number, answer)
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
        answer = thread.answer
        thread.answer = None
        of = type(answer)
        if of is Unanswerable:
            raise answer.error
        process.messages_received += 1
        return reveal(answer) if of is msgspec.Raw and not process.is_client else answer

    async def _wait_for_room(self, call: Call, recipient: Process, box: Mailbox, alarm: Alarm | None) -> None:
        """Until the mailbox of the recipient has a place for the call. Raises `TimedOut`, `UnknownProcess`."""
        while box.full:
            _check_time(alarm, call, "had no room for the call")  # before the wait too: it may begin too late
            if await box.wait_for_room(self._dispatcher.running, RoomIn(recipient)):
                break
        if recipient.ended:
            raise self._table.unknown(recipient.pid)

    def reply(self, process: Process, call: Reply) -> None:
        owed = process.owed
        if not owed or call.message not in owed:
            raise NotACall(f"message {call.message} of process {call.to} waits for no reply, or was answered")
        value = call.body
        of = type(value)
        if not (of in PLAIN or (of is int and -MAX_INT <= value <= MAX_INT)):
            value = isolate(value)
        caller = owed.pop(call.message)
        process.messages_sent += 1
        if caller is None:
            self._bury_reply(process, call.to, call.message, value)
        else:
            caller.answer = value
            caller.wake()
            if caller.priority > process.priority and self.on_urgency is not None:
                self.on_urgency(process)

    def _bury_reply(self, process: Process, caller: int, call: int, value: Any) -> None:
        """Nobody receives what `process` replied to message `call`."""
        late = Message(self.next_id(), "reply", process.pid, caller, 0, call, None, value)
        self.dead_letters.bury(late, "the caller no longer waits")

    # ---- topics, and messages of the kernel

    def publish(self, process: Process, call: Publish) -> int | Coroutine[Any, Any, int]:
        receipt: Receipt | None = None
        delivered = 0
        subscribers, call = self.publication(call)
        for recipient in subscribers:
            outcome = self.offer(recipient, self.envelope(process, recipient, call, self.next_id()))
            if outcome is not False:
                delivered += 1
                receipt = outcome or receipt
        return delivered if receipt is None else receipt.before(delivered)

    def publication(self, call: Publish) -> tuple[list[Process], Publish]:
        """Who gets it, and it with its body encoded once for all. Raises what is wrong with it, before anybody does."""
        subscribers = self._topics.subscribers(call.topic)
        _check_heading(call.topic, call.priority)
        if call.lifetime is not None:
            self._after(call.lifetime, "lifetime")
        return subscribers, msgspec.structs.replace(call, body=_within_bounds(call.body))

    def offer(self, recipient: Process, message: Message) -> Receipt | Literal[False] | None:
        """Put `message` into the mailbox of `recipient`, as `Mailbox.put`. False: it is full, and has a dead letter."""
        box = recipient.box()
        if box.full and not self.make_room(recipient, box):
            self.dead_letters.bury(message, "the subscriber's mailbox was full")
            return False
        return box.put(message)

    def envelope(
        self,
        process: Process,
        recipient: Process,
        call: Send | Call | Publish,
        number: int,
        until: float = inf,
    ) -> Message:
        """The message that `call` sends to `recipient`, with what `send` and `call` check of it spelled out there.

        It has the id `number`, and is void at `until`, in loop time, or after its lifetime.
        """
        deadline = None if until == inf else until
        correlation = number if type(call) is Call else 0
        if isinstance(call, Publish):
            kind, body = call.topic, _within_bounds(call.body)
        else:
            kind, body = _checked(recipient, call.type, call.body)
        if not isinstance(call, Call) and call.lifetime is not None:
            deadline = self._after(call.lifetime, "lifetime")
        if isinstance(call, Send):
            correlation = call.correlation
        _check_heading(kind, call.priority, correlation)
        process.messages_sent += 1
        return Message(number, kind, process.pid, recipient.pid, call.priority, correlation, deadline, body)

    def subscribe(self, process: Process, call: Subscribe) -> None:
        self._topics.subscribe(process, call.pattern)

    def unsubscribe(self, process: Process, call: Unsubscribe) -> None:
        self._topics.unsubscribe(process, call.pattern)

    def notify(
        self,
        recipient: Process,
        type: str,  # noqa: A002 - the field's name
        body: Any,
        *,
        sender: int = 0,
        correlation: int = 0,
    ) -> None:
        """Put a message of the kernel into the mailbox of `recipient`: above all others, and never full."""
        box = recipient.box()
        if not (box.closed or recipient.ended):
            box.put(Message(self.next_id(), type, sender, recipient.pid, CONTROL, correlation, None, isolate(body)))

    def take_back(self, recipient: Process, type: str, correlation: int) -> None:  # noqa: A002
        """Remove such a message of the kernel, if it still waits."""
        box = recipient.mailbox
        for message in () if box is None else tuple(box.peek()):
            if message.priority != CONTROL:
                return
            if message.type == type and message.correlation == correlation:
                assert box is not None
                box.discard(message)

    # ---- looking in, and ends

    def peek(self, process: Process, call: PeekMailbox) -> list[Heading]:
        box = self._table.get(call.pid).mailbox
        waiting = () if box is None else box.peek()
        return [heading(message) for message, _ in zip(waiting, range(call.limit), strict=False)]

    def list_dead_letters(self, process: Process, call: ListDeadLetters) -> list[DeadLetter]:
        return self.dead_letters.listing()

    def process_ended(self, process: Process) -> None:
        """Give back what `process` leaves behind: unread messages are dead letters, callers get an error."""
        self._topics.process_ended(process)
        for message in process.mailbox.close() if process.mailbox is not None else ():
            self.dead_letters.bury(message, "the recipient ended")
        for caller in (process.owed or {}).values():
            if caller is not None:
                error = UnknownProcess(f"process {process.pid} ended before it replied", pid=process.pid)
                caller.answer = Unanswerable(error)
                caller.wake()
        process.owed = None

    # ---- inside

    def recipient(self, to: int | str) -> Process:
        """The living process of that name or pid. Raises `UnknownName` and `UnknownProcess`."""
        return self._names.find(to) if isinstance(to, str) else self._table.get(to)

    def _after(self, seconds: float, what: str) -> float | None:
        """The loop time in so many seconds; None if that never comes."""
        checked = check_seconds(seconds, what)
        return None if checked is None else self._loop.time() + checked

    def begin_after(self, number: int) -> None:
        """Give messages higher ids than `number`."""
        self._last_id = max(self._last_id, number)

    def unknown(self, pid: int) -> UnknownProcess:
        """What to raise for a process that has ended."""
        return self._table.unknown(pid)

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id


def _checked(recipient: Process, kind: str, body: Any) -> tuple[str, Any]:
    """Type and body of a message as they go into the mailbox: isolated, not too large, as the recipient declares."""
    if not kind and isinstance(body, msgspec.Struct):
        kind = type(body).__name__
    body = _within_bounds(body)
    return kind, body if recipient.accepts is None else check(recipient, kind, body)


def _check_heading(kind: str, priority: int, correlation: int = 0) -> None:
    """Raises `InvalidCall`."""
    check_text(kind, "the type of a message", MAX_TYPE)
    check_priority(priority)
    if type(correlation) is not int or not 0 <= correlation <= MAX_INT:
        raise InvalidCall(f"a correlation id is a number from 0 on, which {correlation!r:.100} is not")


def _within_bounds(body: Any) -> Any:
    """`body` isolated. Raises `MessageTooLarge` and `NotEncodable`."""
    body = isolate(body)
    if (length := size(body)) > MAX_BODY:
        raise MessageTooLarge(
            f"a body of {length} bytes is more than a message may carry ({MAX_BODY}); put it into shared memory and "
            "send its name",
            size=length,
            limit=MAX_BODY,
        )
    return body


def _check_time(alarm: Alarm | None, call: Call, what: str) -> None:
    if alarm is not None and alarm.rung:
        raise TimedOut(f"process {call.to} {what} within {call.timeout} s", to=call.to, timeout=call.timeout)


def forget_caller(recipient: Process, message: int) -> None:
    """Nobody waits for the reply to `message` any more; when it comes, it is a dead letter and no error."""
    owed = recipient.owed
    if owed is not None and message in owed:
        owed[message] = None
        if len(owed) > LATE_REPLIES:
            del owed[message]
