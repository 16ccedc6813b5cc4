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

    __slots__ = ("_dead", "items")

    def __init__(self) -> None:
        self.items: deque[Message] = deque()
        self._dead: set[int] | None = None

    def __len__(self) -> int:
        return len(self.items) - len(self._dead or ())

    def __iter__(self) -> Iterator[Message]:
        """The living, oldest first."""
        dead = self._dead
        return iter(self.items) if not dead else (message for message in self.items if message.id not in dead)

    def pop(self) -> Message:
        """Remove the first. There must be one."""
        message = self.items.popleft()
        if self._dead:
            self._trim(self._dead)
        return message

    def discard(self, message: Message) -> None:
        """Remove `message`, which is in the lane."""
        if self.items[0] is message:
            self.pop()
            return
        if self._dead is None:
            self._dead = set()
        self._dead.add(message.id)
        if len(self._dead) > SPARSE and 2 * len(self._dead) > len(self.items):
            self.items = deque(self)
            self._dead = None

    def _trim(self, dead: set[int]) -> None:
        items = self.items
        while items and items[0].id in dead:
            dead.remove(items.popleft().id)
