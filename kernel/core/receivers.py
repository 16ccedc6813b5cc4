"""The receivers of a mailbox: the threads that wait for a message of their choice, and those woken for a message.

The mailbox adds threads and asks which one a message concerns. Threads that name the same attributes with the same
values share a queue, so finding the receiver of a message takes constant time, whatever the number of waiting threads.
Only the predicates of the threads in a queue are tried one by one. This file never wakes a thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import merge

from ipc.messages import Message
from kernel.core.fiber import Fiber
from kernel.core.selector import Selector

Key = tuple[int | None, int | None, str | None]  # a correlation id, a sender and a type; None for any
Entry = tuple[int, Fiber, Selector | None]  # number of arrival, the thread, and what it wants; None for any message
Queue = OrderedDict[Fiber, Entry]


class WaitingReceivers:
    """The waiting threads, each at most once."""

    __slots__ = ("_arrivals", "_keys", "_queues", "_shapes")

    def __init__(self) -> None:
        self._arrivals = 0
        self._keys: dict[Fiber, Key] = {}  # in order of arrival
        self._queues: dict[Key, Queue] = {}
        self._shapes: dict[tuple[bool, bool, bool], int] = {}  # which attributes are named, by how many queues

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Fiber]:
        """The threads, in order of arrival."""
        return iter(self._keys)

    def add(self, thread: Fiber, selector: Selector | None) -> None:
        """Add `thread`, which does not wait here, behind all others."""
        key = (None, None, None) if selector is None else (selector.correlation, selector.sender, selector.type)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = OrderedDict()
            shape = _shape(key)
            self._shapes[shape] = self._shapes.get(shape, 0) + 1
        self._arrivals += 1
        queue[thread] = self._arrivals, thread, selector
        self._keys[thread] = key

    def remove(self, thread: Fiber) -> None:
        """Remove `thread`. Does nothing if it does not wait here."""
        key = self._keys.pop(thread, None)
        if key is None:
            return
        queue = self._queues[key]
        del queue[thread]
        if not queue:
            del self._queues[key]
            shape = _shape(key)
            self._shapes[shape] -= 1
            if not self._shapes[shape]:
                del self._shapes[shape]

    def first_for(self, message: Message) -> Fiber | None:
        """The thread that wants `message` and has waited longest; None if no thread wants it."""
        queues: list[Queue] = []
        for correlation, sender, kind in self._shapes:
            key = (
                message.correlation if correlation else None,
                message.sender if sender else None,
                message.type if kind else None,
            )
            if key in self._queues:
                queues.append(self._queues[key])
        entries = queues[0].values() if len(queues) == 1 else merge(*(queue.values() for queue in queues), key=_number)
        for _, thread, selector in entries:
            if selector is None or selector.where is None or selector.may_match(message):
                return thread
        return None


class WokenReceivers:
    """Threads that were woken while others waited, and for which message each of them. They may leave the message.

    Only the threads that wait now need such a note. A receiver that arrives later looks into the mailbox first, and
    waits only if it does not want the message.
    """

    __slots__ = ("_messages", "_threads")

    def __init__(self) -> None:
        self._messages: dict[Fiber, Message] = {}
        self._threads: dict[int, Fiber] = {}  # by the id of the message

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, thread: Fiber, message: Message) -> None:
        self._messages[thread] = message
        self._threads[message.id] = thread

    def pop(self, thread: Fiber) -> Message | None:
        """Forget `thread`, and return its message if that is still in the mailbox."""
        message = self._messages.pop(thread, None)
        if message is not None:
            del self._threads[message.id]
        return message

    def forget(self, message: Message) -> None:
        """Forget the thread that was woken for `message`, which has left the mailbox."""
        thread = self._threads.pop(message.id, None)
        if thread is not None:
            del self._messages[thread]


def _shape(key: Key) -> tuple[bool, bool, bool]:
    correlation, sender, kind = key
    return correlation is not None, sender is not None, kind is not None


def _number(entry: Entry) -> int:
    return entry[0]
