"""The selector of a selective receive.

The message subsystem makes it from a `Receive`, and the mailbox matches messages against it. It reads the heading of a
message, and never the body, which only the predicate of an agent may read.
"""

from __future__ import annotations

from collections.abc import Callable

from ipc.messages import Message


class Selector:
    """Matches messages of a type, from a sender, with a correlation id, and for which `where` is true; None: any."""

    __slots__ = ("correlation", "sender", "type", "where")

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

    def ended_by(self) -> None:
        """Anyone may send a message, so no set of threads is known to end this wait: see `kernel.core.waits`."""

    def __str__(self) -> str:
        parts = [
            f"of type {self.type}" if self.type is not None else "",
            f"from {self.sender}" if self.sender is not None else "",
            f"with correlation {self.correlation}" if self.correlation is not None else "",
        ]
        return " ".join(["message", *filter(None, parts)])
