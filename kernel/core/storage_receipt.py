"""The receipt for a message that a durable mailbox has taken: its sender is answered when the message is on disk.

Mailboxes return it, and the message subsystem awaits it. It never writes anything itself.
"""

from __future__ import annotations

from typing import Any, Protocol


class StorageReceipt(Protocol):
    """A promise that a message will be on disk: see `kernel.durable`."""

    async def answer_after_commit(self, answer: Any) -> Any:
        """Wait until the message is on disk, and return `answer`."""
