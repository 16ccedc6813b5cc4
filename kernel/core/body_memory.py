"""The memory for the bodies of messages: how many bytes all mailboxes may hold together.

The message subsystem takes bytes before a body waits or enters a mailbox, and the mailbox gives them back when the
message leaves. It knows no message, and never frees anything itself.
"""

from __future__ import annotations

from ipc.errors import Busy


class BodyMemory:
    """The bytes of all counted bodies in all mailboxes together, and of those that wait for room: at most `maximum`."""

    __slots__ = ("maximum", "used")

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.used = 0

    def take(self, size: int) -> None:
        """Count a body of `size` bytes that is sent. Raises `Busy`."""
        if self.used + size > self.maximum:
            raise Busy(
                f"the unread messages of all processes have {self.used} bytes, {size} more are too many, and the limit "
                f"is {self.maximum}; send again later, or set `message_bytes` in [memory] higher",
                retry_after=1.0,
            )
        self.used += size
