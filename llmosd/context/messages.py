"""Messages, as an agent sends and receives them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import msgspec

from ipc.codec import reveal
from ipc.messages import Message
from ipc.syscalls import Call, Receive, Reply, Send
from llmosd.context.base import Caller


class MessageCalls(Caller):
    """Send, receive, call and reply."""

    __slots__ = ()

    def send(
        self,
        to: int,
        body: Any,
        *,
        type: str = "",  # noqa: A002 - the field's name in the envelope
        priority: int = 0,
        wait: bool = True,
        lifetime: float | None = None,
    ) -> Coroutine[Any, Any, int]:
        """Put a message into the mailbox of process `to`; its id. A full mailbox is waited for if `wait`."""
        return self._gate.call(self._process, Send(to, body, type, priority, wait, lifetime))

    async def receive(self, *, timeout: float | None = None) -> Message:
        """The most urgent message in the own mailbox, waiting for one at most `timeout` seconds."""
        message: Message = await self._gate.call(self._process, Receive(timeout))
        if isinstance(message.body, msgspec.Raw):
            return msgspec.structs.replace(message, body=reveal(message.body))
        return message

    async def call(
        self,
        to: int,
        body: Any,
        timeout: float | None = None,
        *,
        type: str = "",  # noqa: A002
        priority: int = 0,
    ) -> Any:
        """Send to process `to` and wait for what it replies."""
        return reveal(await self._gate.call(self._process, Call(to, body, timeout, type, priority)))

    def reply(self, message: Message, body: Any) -> Coroutine[Any, Any, None]:
        """Answer a message that came by `call`."""
        return self._gate.call(self._process, Reply(message.sender, message.correlation, body))
