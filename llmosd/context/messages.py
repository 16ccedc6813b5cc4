"""Messages: the calls of an agent to send, receive, call and reply; names and topics."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from ipc.errors import InvalidCall
from ipc.foreign import class_name, shown
from ipc.messages import Message
from ipc.syscalls import ANY_MESSAGE, Call, Publish, Receive, Register, Reply, Send, Subscribe, Unregister, Unsubscribe
from llmosd.context.base import Caller


class MessageMethods(Caller):
    """Send, receive, call and reply; names and topics."""

    __slots__ = ()

    def send(
        self,
        to: int | str,
        body: Any,
        *,
        type: str = "",  # noqa: A002 - the field of a message has this name
        priority: int = 0,
        wait: bool = True,
        lifetime: float | None = None,
        correlation: int = 0,
    ) -> Coroutine[Any, Any, int]:
        """Put a message into the mailbox of process `to` (a pid or a registered name). Returns the message's id.

        If the mailbox is full, `send` waits for room, or raises `MailboxFull` if `wait` is false. After `lifetime`
        seconds the message is void. `correlation` is any number by which sender and recipient match messages.
        `ipc.syscalls.Send` explains `type`, and names all errors.
        """
        return self._gate.call(self._process, Send(to, body, type, priority, wait, lifetime, correlation))

    def receive(
        self,
        *,
        timeout: float | None = None,
        type: str | builtins.type[msgspec.Struct] | None = None,  # noqa: A002
        sender: int | None = None,
        correlation: int | None = None,
        where: Callable[[Message], bool] | None = None,
    ) -> Coroutine[Any, Any, Message]:
        """Take the most urgent message out of this process's mailbox, or wait for one. Raises `TimedOut`.

        The keywords select messages: `type` (a name, or a Struct that the agent declares), `sender` (a pid),
        `correlation`, and a predicate `where`. All other messages stay in the mailbox. `where` gets the whole
        `Message`, whose body may still be encoded, so it should look only at the other fields.
        """
        if timeout is None and type is None and sender is None and correlation is None and where is None:
            return self._gate.call(self._process, ANY_MESSAGE)
        kind = type.__name__ if isinstance(type, builtins.type) else type
        return self._gate.call(self._process, Receive(timeout, kind, sender, correlation, where))

    def call(
        self,
        to: int | str,
        body: Any,
        timeout: float | None = None,
        *,
        type: str = "",  # noqa: A002
        priority: int = 0,
    ) -> Coroutine[Any, Any, Any]:
        """Send to process `to` (a pid or a registered name), and wait for the body of its reply.

        Raises `TimedOut` after `timeout` seconds, `UnknownProcess` if `to` ends before it replies, and
        `DeadlockDetected` if `to` waits for this process.
        """
        return self._gate.call(self._process, Call(to, body, timeout, type, priority))

    def reply(self, message: Message, body: Any) -> Coroutine[Any, Any, None]:
        """Reply to a message that was sent by `call`. Raises `NotACall` for other messages, and for a second reply.

        If the caller no longer waits, the reply becomes a dead letter, and nothing is raised.
        """
        try:
            call = Reply(message.sender, message.id, body)
        except AttributeError:
            raise InvalidCall(f"reply takes a Message, not {shown(message)}, of type {class_name(message)}") from None
        return self._gate.call(self._process, call)

    # ---- names and topics

    def register(self, name: str) -> Coroutine[Any, Any, None]:
        """Let others reach this process by `name`, until it ends or unregisters the name. Raises `NameTaken`."""
        return self._gate.call(self._process, Register(name))

    def unregister(self, name: str) -> Coroutine[Any, Any, None]:
        """Give up a name of this process. Raises `UnknownName`, `NotPermitted`."""
        return self._gate.call(self._process, Unregister(name))

    def publish(
        self, topic: str, body: Any, *, priority: int = 0, lifetime: float | None = None
    ) -> Coroutine[Any, Any, int]:
        """Send a message to all subscribers of `topic`. Returns how many processes got it.

        A topic is words with dots between them, and becomes the type of the message. `publish` never waits for room: if
        a subscriber's mailbox is full, the message for that subscriber becomes a dead letter.
        """
        return self._gate.call(self._process, Publish(topic, body, priority, lifetime))

    def subscribe(self, pattern: str) -> Coroutine[Any, Any, None]:
        """Receive each message on a topic that matches `pattern`.

        In a pattern, `*` stands for one word, and a final `#` for any number of words, including none.
        """
        return self._gate.call(self._process, Subscribe(pattern))

    def unsubscribe(self, pattern: str) -> Coroutine[Any, Any, None]:
        """Undo `subscribe` of the same pattern. Raises `NotFound`."""
        return self._gate.call(self._process, Unsubscribe(pattern))
