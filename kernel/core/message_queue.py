"""Message queues, which hold the messages of one priority in the order of arrival, and indexes over all of them.

A mailbox has a queue for each priority. At the first receive that selects by an attribute, the mailbox builds an index
of that attribute, so that such a receive need not look at every message. It updates the index with each message that
enters or leaves. To remove any message takes amortized constant time. This file never wakes a thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from ipc.messages import Message

SPARSE = 32  # a queue with at most so many dead entries is not rebuilt
INDEXED = ("correlation", "sender", "type")  # attributes of messages, the most selective first


class MessageQueue:
    """First in, first out. A message discarded from the middle stays as a dead entry until it gets to the head.

    The first of `items` is always alive. The queue is rebuilt when its dead entries outnumber the living ones, so
    dropping them costs amortized constant time per message.
    """

    __slots__ = ("dead", "items")

    def __init__(self) -> None:
        self.items: deque[Message] = deque()
        self.dead: set[int] | None = None  # ids of dead entries; None if there are none

    def __len__(self) -> int:
        return len(self.items) - len(self.dead or ())

    def __iter__(self) -> Iterator[Message]:
        """The messages that are alive, oldest first."""
        dead = self.dead
        return iter(self.items) if not dead else (message for message in self.items if message.id not in dead)

    def pop(self) -> Message:
        """Remove and return the first message. There must be one."""
        message = self.items.popleft()
        if self.dead:
            self._trim(self.dead)
        return message

    def discard(self, message: Message) -> None:
        """Remove `message`, which must be in the queue."""
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


# By value of the attribute, and priority. A single message stands for a queue of one: most correlation ids are unique.
Index = dict[tuple[int | str, int], MessageQueue | Message]


def build_index(attribute: str, messages: Iterable[Message]) -> Index:
    """An index of `messages` by `attribute`."""
    index: Index = {}
    for message in messages:
        add_to_index(index, getattr(message, attribute), message)
    return index


def drop_from_all(indexes: dict[str, Index], message: Message) -> bool:
    """Remove `message` from all indexes. True if `message` was the last one in the mailbox."""
    for attribute, index in indexes.items():
        key = getattr(message, attribute), message.priority
        found = index[key]
        if isinstance(found, MessageQueue):
            found.discard(message)
            if found.items:
                continue
        del index[key]
    return not index


def add_to_index(index: Index, value: int | str, message: Message) -> None:
    """Add `message`, whose indexed attribute is `value`, behind the messages with the same value and priority."""
    key = value, message.priority
    found = index.get(key)
    if found is None:
        index[key] = message
    elif isinstance(found, MessageQueue):
        found.items.append(message)
    else:
        queue = index[key] = MessageQueue()
        queue.items += (found, message)


def indexed(index: Index, key: tuple[int | str, int]) -> Iterable[Message]:
    """The messages whose attribute value and priority are `key`, in the order of arrival."""
    found = index.get(key)
    return () if found is None else found if isinstance(found, MessageQueue) else (found,)
