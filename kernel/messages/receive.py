"""Receive: takes the next message of a mailbox, or the next that a selector matches, and waits if there is none.

The gate calls its handler. It never delivers a message that is past its deadline or cannot be decoded: such a message
becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import msgspec

from ipc.codec import reveal
from ipc.errors import BadMessage, MalformedFrame, TimedOut
from ipc.messages import Message
from ipc.syscalls import ANY_MESSAGE, Receive
from kernel.core.answers import Unanswerable
from kernel.core.fiber import PARK
from kernel.core.mailbox import Mailbox
from kernel.core.plain_wait import ANY_MESSAGE_WAIT
from kernel.core.process import Process
from kernel.core.selector import Selector
from kernel.core.timers import Timer
from kernel.dispatch.dispatcher import Dispatcher
from kernel.dispatch.priority_inheritance import PriorityInheritance
from kernel.gate import Gate
from kernel.lib.call_checks import check_call
from kernel.lib.validation import check_text, check_timeout
from kernel.messages.dead_letters import DeadLetterQueue
from kernel.messages.validation import MAX_TYPE


class Receiver:
    """Takes messages out of mailboxes, for the processes that own them."""

    def __init__(
        self, gate: Gate, dispatcher: Dispatcher, dead_letters: DeadLetterQueue, inheritance: PriorityInheritance
    ) -> None:
        self._dispatcher = dispatcher
        self._inheritance = inheritance
        self._loop = dispatcher.loop
        self._dead_letters = dead_letters
        gate.register({Receive: self.receive})

    def receive(self, process: Process, call: Receive) -> Message | Coroutine[Any, Any, Message]:
        if call is not ANY_MESSAGE:
            return self._receive_selected(process, call)
        box = process.mailbox
        if box is None and process.first_receiver is None:
            return self._receive_first(process)
        message = None if box is None else box.take()
        if message is None:
            return self._receive_next(process, box or process.open_mailbox())
        if message.deadline is not None or type(message.body) is msgspec.Raw:
            message = self._deliverable(process, message)
            if message is None:
                return self.receive(process, call)
        process.messages_received += 1
        return message

    def _receive_selected(self, process: Process, call: Receive) -> Message | Coroutine[Any, Any, Message]:
        check_call(call)
        timeout = check_timeout(call.timeout)
        selector = None
        if call.type is not None:
            check_text(call.type, "the type of a message", MAX_TYPE)
        if (call.type, call.sender, call.correlation, call.where) != (None, None, None, None):
            selector = Selector(call.type, call.sender, call.correlation, call.where)
        message = self._take(process, selector)
        return message if message is not None else self._receive_later(process, timeout, selector)

    async def _receive_first(self, process: Process) -> Message:
        """Wait for any message in a process without a mailbox. The first message makes the mailbox; most get none."""
        thread = self._dispatcher.running
        process.first_receiver, thread.waits_for = thread, ANY_MESSAGE_WAIT
        try:
            await PARK
            message = self._take(process, None)
        finally:
            if process.mailbox is not None:
                process.mailbox.end_receive(thread)
            else:
                process.first_receiver = None
        return message if message is not None else await self._receive_later(process, None, None)

    async def _receive_next(self, process: Process, box: Mailbox) -> Message:
        """Wait for any message, without a timeout. Most waits are of this kind, and `_receive_later` is slower."""
        thread = self._dispatcher.running
        while True:
            box.add_receiver(thread)
            try:
                await PARK
            except BaseException:
                box.end_receive(thread)
                raise
            message = box.take()
            if box.receiver is not None or box.further is not None or box.woken:
                box.end_receive(thread)
            if message is None:
                continue
            if message.deadline is not None or type(message.body) is msgspec.Raw:
                message = self._deliverable(process, message)
                if message is None:
                    message = self._take(process, None)
                    if message is None:
                        continue
                    return message
            process.messages_received += 1
            return message

    async def _receive_later(self, process: Process, timeout: float | None, selector: Selector | None) -> Message:
        thread = self._dispatcher.running
        timer = Timer(thread, timeout)
        try:
            message = self._take(process, selector)
            while message is None:
                if timer.expired:
                    what = "message" if selector is None else str(selector)
                    raise TimedOut(f"no {what} within {timeout} s", timeout=timeout)
                box = process.open_mailbox()
                box.add_receiver(thread, selector)
                try:
                    await PARK
                    message = self._take(process, selector)
                finally:  # also if the receiver's own predicate raises
                    box.end_receive(thread)
            return message
        finally:
            timer.cancel()

    def _take(self, process: Process, selector: Selector | None) -> Message | None:
        """The next message that can be delivered, in the form for its receiver; None if there is none."""
        box = process.mailbox
        while box is not None:
            message = box.take() if selector is None else box.select(selector)
            if message is None:
                return None
            deliverable = self._deliverable(process, message)
            if deliverable is not None:
                process.messages_received += 1
                return deliverable
        return None

    def _deliverable(self, process: Process, message: Message) -> Message | None:
        """`message` in the form for its receiver: an agent gets the body decoded, a client gets it encoded.

        Returns None if the message is past its deadline or cannot be decoded, and has become a dead letter.
        """
        if message.deadline is not None and self._loop.time() >= message.deadline:
            self._dead_letters.expire(process, message)
            return None
        if type(message.body) is msgspec.Raw and not process.is_client:
            try:
                return msgspec.structs.replace(message, body=reveal(message.body))
            except MalformedFrame as error:
                self._reject(process, message, error)
                return None
        return message

    def _reject(self, recipient: Process, message: Message, error: MalformedFrame) -> None:
        """Bury `message`, whose body cannot be decoded. If it is a call, its caller gets `BadMessage`."""
        self._dead_letters.bury(message, "its body cannot be decoded")
        caller = recipient.pending_calls.pop(message.id, None) if recipient.pending_calls else None
        if caller is not None:
            what = f"the body for process {recipient.pid} cannot be decoded: {error.message}"
            caller.answer = Unanswerable(BadMessage(what))
            caller.wake()
            self._inheritance.changed(recipient, caller)
