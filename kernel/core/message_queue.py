"""The queue of a mailbox: lanes, which hold messages in the order of their arrival, and indexes over all of them.

A mailbox has a lane for each priority. It makes the indexes at its first selective receive, so that such a receive does
not look at every message, and reports each message that comes or goes from then on. Taking the first message and
discarding any other cost the same, however long the queue is. Nothing here wakes a thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from ipc.messages import Message

SPARSE = 32  # dead entries below which a lane is not worth rebuilding
INDEXED = ("correlation", "sender", "type")  # attributes of messages, the sharpest first


class MessageQueue:
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


# By what is asked for, and priority. One message stands for a lane of one: correlation ids are mostly unique.
Index = dict[tuple[int | str, int], MessageQueue | Message]


def index_by(attribute: str, messages: Iterable[Message]) -> Index:
    """An index of `messages` by `attribute`."""
    index: Index = {}
    for message in messages:
        add(index, getattr(message, attribute), message)
    return index


def drop(indexes: dict[str, Index], message: Message) -> bool:
    """Take `message` out of all. Whether it was the last of the mailbox."""
    for attribute, index in indexes.items():
        key = getattr(message, attribute), message.priority
        found = index[key]
        if isinstance(found, MessageQueue):
            found.discard(message)
            if found.items:
                continue
        del index[key]
    return not index


def add(index: Index, key: int | str, message: Message) -> None:
    """Put `message` under what it has as `key`, behind those that are there."""
    place = key, message.priority
    found = index.get(place)
    if found is None:
        index[place] = message
    elif isinstance(found, MessageQueue):
        found.items.append(message)
    else:
        lane = index[place] = MessageQueue()
        lane.items += (found, message)


def entry(index: Index, place: tuple[int | str, int]) -> Iterable[Message]:
    """The messages at one place of an index, in their order."""
    found = index.get(place)
    return () if found is None else found if isinstance(found, MessageQueue) else (found,)
