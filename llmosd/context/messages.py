"""Messages, as an agent sends and receives them."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

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
        type: str = "",  # noqa: A002 - the field's name in the envelope
        priority: int = 0,
        wait: bool = True,
        lifetime: float | None = None,
        correlation: int = 0,
    ) -> Coroutine[Any, Any, int]:
        """Put a message into the mailbox of process `to` (pid or registered name); its id.

        A full mailbox is waited for if `wait`. The message is void after `lifetime` seconds. `correlation` is yours to
        match answers with questions.
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
        """The most urgent message in the own mailbox, waiting for one at most `timeout` seconds.

        Only of a type (a name, or the Struct declared under it), from a sender, with a correlation id, or for which
        `where` holds, if given; all else stays in the mailbox. `where` sees the envelope: its body may be encoded.
        """
        if timeout is None and type is None and sender is None and correlation is None and where is None:
            return self._gate.call(self._process, ANY_MESSAGE)
        kind = type if type is None or isinstance(type, str) else type.__name__
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
        """Send to process `to` (pid or registered name) and wait for what it replies."""
        return self._gate.call(self._process, Call(to, body, timeout, type, priority))

    def reply(self, message: Message, body: Any) -> Coroutine[Any, Any, None]:
        """Answer a message that came by `call`."""
        return self._gate.call(self._process, Reply(message.sender, message.id, body))

    # ---- names and topics

    def register(self, name: str) -> Coroutine[Any, Any, None]:
        """Let others reach this process by `name`, until it ends or gives it up."""
        return self._gate.call(self._process, Register(name))

    def unregister(self, name: str) -> Coroutine[Any, Any, None]:
        """Give up a name of this process."""
        return self._gate.call(self._process, Unregister(name))

    def publish(
        self, topic: str, body: Any, *, priority: int = 0, lifetime: float | None = None
    ) -> Coroutine[Any, Any, int]:
        """Send to all who subscribed to `topic`, words with dots between them; how many got it. Waits for nobody."""
        return self._gate.call(self._process, Publish(topic, body, priority, lifetime))

    def subscribe(self, pattern: str) -> Coroutine[Any, Any, None]:
        """Receive what is published on matching topics: `*` is one word, `#` at the end any number of words."""
        return self._gate.call(self._process, Subscribe(pattern))

    def unsubscribe(self, pattern: str) -> Coroutine[Any, Any, None]:
        """Take a subscription back."""
        return self._gate.call(self._process, Unsubscribe(pattern))
