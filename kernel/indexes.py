"""Indexes over the messages of one mailbox, so that a selective receive need not look at all of them.

Made by a mailbox at its first selective receive, and told of every message that comes and goes from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ipc.messages import Message
from kernel.lane import Lane

INDEXED = ("correlation", "sender", "type")  # attributes of messages, the sharpest first

# By what is asked for, and priority. One message stands for a lane of one: correlation ids are mostly unique.
Index = dict[tuple[int | str, int], Lane | Message]


class Indexes:
    """An index for each attribute that was asked for so far."""

    __slots__ = ("_indexes",)

    def __init__(self) -> None:
        self._indexes: dict[str, Index] = {}

    def of(self, attribute: str, messages: Callable[[], Iterable[Message]]) -> Index:
        """The index by `attribute`, made now over all `messages` if there is none yet."""
        index = self._indexes.get(attribute)
        if index is None:
            index = self._indexes[attribute] = {}
            for message in messages():
                _add(index, getattr(message, attribute), message)
        return index

    def add(self, message: Message) -> None:
        for attribute, index in self._indexes.items():
            _add(index, getattr(message, attribute), message)

    def drop(self, message: Message) -> bool:
        """Whether any message is left."""
        for attribute, index in self._indexes.items():
            key = getattr(message, attribute), message.priority
            found = index[key]
            if isinstance(found, Lane):
                found.discard(message)
                if found.items:
                    continue
            del index[key]
        return bool(index)


def _add(index: Index, key: int | str, message: Message) -> None:
    place = key, message.priority
    found = index.get(place)
    if found is None:
        index[place] = message
    elif isinstance(found, Lane):
        found.items.append(message)
    else:
        lane = index[place] = Lane()
        lane.items += (found, message)


def entry(index: Index, place: tuple[int | str, int]) -> Iterable[Message]:
    """The messages at one place of an index, in their order."""
    found = index.get(place)
    return () if found is None else found if isinstance(found, Lane) else (found,)
