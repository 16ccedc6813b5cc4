"""Indexes over the messages of one mailbox, so that a selective receive need not look at all of them.

Made by a mailbox at its first selective receive, and told of every message that comes and goes from then on.
"""

from __future__ import annotations

from collections.abc import Iterable

from ipc.messages import Message
from kernel.lane import Lane

INDEXED = ("correlation", "sender", "type")  # attributes of messages, the sharpest first

# By what is asked for, and priority. One message stands for a lane of one: correlation ids are mostly unique.
Index = dict[tuple[int | str, int], Lane | Message]


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
        if isinstance(found, Lane):
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
    elif isinstance(found, Lane):
        found.items.append(message)
    else:
        lane = index[place] = Lane()
        lane.items += (found, message)


def entry(index: Index, place: tuple[int | str, int]) -> Iterable[Message]:
    """The messages at one place of an index, in their order."""
    found = index.get(place)
    return () if found is None else found if isinstance(found, Lane) else (found,)
