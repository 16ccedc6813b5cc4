"""Receive: the next message of a mailbox, or the next that a selection fits, and the waits for one.

Its handler is called by the gate. It never hands out what is past its deadline or cannot be decoded: that is a dead
letter.
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
from kernel.core.process import Process
from kernel.core.selector import Selector
from kernel.core.timers import Timer
from kernel.dispatch.dispatcher import Dispatcher
from kernel.gate import Gate
from kernel.lib.validation import check_timeout
from kernel.messages.dead_letters import DeadLetterQueue


class Receiver:
    """Takes messages out of mailboxes."""

    def __init__(self, gate: Gate, dispatcher: Dispatcher, dead_letters: DeadLetterQueue) -> None:
        self._dispatcher = dispatcher
        self._loop = dispatcher.loop
        self._dead_letters = dead_letters
        gate.register({Receive: self.receive})

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
            selection = Selector(call.type, call.sender, call.correlation, call.where)
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

    async def _receive_later(self, process: Process, timeout: float | None, selection: Selector | None) -> Message:
        thread = self._dispatcher.running
        timer = Timer(thread, timeout)
        try:
            message = self._take(process, selection)
            while message is None:
                if timer.rung:
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
            timer.cancel()

    def _take(self, process: Process, selection: Selector | None) -> Message | None:
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
            self._dead_letters.expire(process, message)
            return None
        if type(message.body) is msgspec.Raw and not process.is_client:
            try:
                return msgspec.structs.replace(message, body=reveal(message.body))
            except MalformedFrame as error:
                self._refuse(process, message, error)
                return None
        return message

    def _refuse(self, recipient: Process, message: Message, error: MalformedFrame) -> None:
        """The body of `message` is not what it seemed when it was passed on: that is nothing to its receiver."""
        self._dead_letters.bury(message, "its body cannot be decoded")
        caller = recipient.pending_calls.pop(message.id, None) if recipient.pending_calls else None
        if caller is not None:
            what = f"the body for process {recipient.pid} cannot be decoded: {error.message}"
            caller.answer = Unanswerable(BadMessage(what))
            caller.wake()
