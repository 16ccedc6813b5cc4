"""What a selective receive asks for.

Made by the message subsystem from a `Receive`; the mailbox matches messages against it. It looks at headings, never
into bodies.
"""

from __future__ import annotations

from collections.abc import Callable

from ipc.messages import Message


class Selector:
    """Messages of a type, from a sender, with a correlation id, and for which `where` holds; None asks for nothing."""

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
        """Anyone may send: see `kernel.core.waits`."""

    def __str__(self) -> str:
        parts = [
            f"of type {self.type}" if self.type is not None else "",
            f"from {self.sender}" if self.sender is not None else "",
            f"with correlation {self.correlation}" if self.correlation is not None else "",
        ]
        return " ".join(["message", *filter(None, parts)])
