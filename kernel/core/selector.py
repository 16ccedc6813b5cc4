"""The selector of a selective receive.

The message subsystem makes a selector from a `Receive`, and the mailbox matches messages against it. A selector reads
the heading of a message and never its body. Only the predicate of an agent may read the body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipc.messages import Message
from ipc.syscalls import WaitFacts
from kernel.lib.wording import counted, quoted


class Selector:
    """Matches messages that have this type, sender and correlation id, and satisfy `where`. None allows any value."""

    __slots__ = ("correlation", "sender", "type", "where")
    stage = ""

    def __init__(
        self,
        type: str | None = None,  # noqa: A002 - the field's name in the envelope
        sender: int | None = None,
        correlation: int | None = None,
        where: Callable[[Message], bool] | None = None,
    ) -> None:
        self.type = type
        self.sender = sender
        self.correlation = correlation
        self.where = where

    def matches(self, message: Message) -> bool:
        return (
            (self.correlation is None or message.correlation == self.correlation)
            and (self.sender is None or message.sender == self.sender)
            and (self.type is None or message.type == self.type)
            and (self.where is None or bool(self.where(message)))
        )

    def may_match(self, message: Message) -> bool:
        """The same, but True if the predicate fails: it must raise in its receiver, not in the sender."""
        try:
            return self.matches(message)
        except Exception:
            return True

    def ended_by(self) -> None:
        """None: any process may send a message, so no set of threads is known to end this wait."""

    def explain(self, thread: Any) -> WaitFacts:
        box = thread.process.mailbox
        others = 0 if box is None else box.count
        wanted = quoted(self) + (", as chosen by a function" if self.where is not None else "")
        return WaitFacts(
            kind="message",
            doing=f"waiting for a {wanted}",
            state=f"Its mailbox holds {counted(others, 'message')} that it does not want now" if others else "",
            ends=f"process {self.sender} sends such a message" if self.sender else "a process sends such a message",
            awaits=self.sender or 0,
        )

    def __str__(self) -> str:
        parts = [
            f"of type {self.type}" if self.type is not None else "",
            f"from {self.sender}" if self.sender is not None else "",
            f"with correlation {self.correlation}" if self.correlation is not None else "",
        ]
        return " ".join(["message", *filter(None, parts)])
