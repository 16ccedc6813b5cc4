"""A lane: messages in the order of their arrival, from which any may leave.

The mailbox keeps its messages in lanes, one a priority, and its indexes too. Taking the first and discarding any other
cost the same, however long the lane is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ipc.messages import Message

SPARSE = 32  # dead entries below which a lane is not worth rebuilding


class Lane:
    """First in, first out. A message that leaves from the middle stays as a dead entry until the head passes it.

    The first of `items` is always alive. Dead ones never outnumber the living for long, so the cost of dropping them is
    constant per message in the mean.
    """

    __slots__ = ("dead", "items")

    def __init__(self) -> None:
        self.items: deque[Message] = deque()
        self.dead: set[int] | None = None  # ids; None: nothing but the living

    def __len__(self) -> int:
        return len(self.items) - len(self.dead or ())

    def __iter__(self) -> Iterator[Message]:
        """The living, oldest first."""
        dead = self.dead
        return iter(self.items) if not dead else (message for message in self.items if message.id not in dead)

    def pop(self) -> Message:
        """Remove the first. There must be one."""
        message = self.items.popleft()
        if self.dead:
            self._trim(self.dead)
        return message

    def discard(self, message: Message) -> None:
        """Remove `message`, which is in the lane."""
        if self.items[0] is message:
            self.pop()
            return
        if self.dead is None:
            self.dead = set()
        self.dead.add(message.id)
        if len(self.dead) > SPARSE and 2 * len(self.dead) > len(self.items):
            self.items = deque(self)
            self.dead = None

    def _trim(self, dead: set[int]) -> None:
        items = self.items
        while items and items[0].id in dead:
            dead.remove(items.popleft().id)
        if not dead:
            self.dead = None
