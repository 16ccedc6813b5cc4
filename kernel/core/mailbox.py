"""The mailbox of a process: bounded, ordered by priority and then by arrival, with waiting senders and receivers.

Called by the message subsystem. Messages live in the mailbox and never in a waiter, so a cancelled wait loses none.
It knows nothing of processes; it wakes threads and holds messages. A selective receive goes by an index, made at the
first of its kind and kept until the mailbox is empty: a constant cost per message in the mean, however deep it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Protocol

from ipc.messages import Message
from kernel.core.fiber import Fiber
from kernel.core.message_queue import INDEXED, Index, MessageQueue, add, drop, entry, index_by
from kernel.core.selector import Selector

CAPACITY = 1000  # messages
RECEIVED = 5  # messages of which it is remembered that they were received
CONTROL = 21  # the priority of the kernel's own messages: above all others, and outside the bound


class StorageReceipt(Protocol):
    """That a message is safe. See `kernel.durable`."""

    async def before(self, answer: Any) -> Any:
        """`answer`, once it is."""


class Mailbox:
    """A lane for each priority. Made at first use, since most processes never get a message."""

    __slots__ = (
        "_indexes",
        "_lane",
        "_lanes",
        "_senders",
        "called",
        "capacity",
        "closed",
        "received",
        "receiver",
        "selectors",
        "taken",
    )

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.closed = False
        self.taken = 0  # places: messages within the bound, and places kept for senders that were woken
        self.receiver: Fiber | None = None  # waits for any message, and came before all `selectors`
        self.received: deque[tuple[int, str, int, int, int]] | None = None  # the last ones, for a crash report
        self.selectors: list[tuple[Fiber, Selector | None]] | None = None  # more receivers, in their order
        self.called: dict[Fiber, Message] | None = None  # receivers that were woken while others waited, and for what
        self._senders: deque[Fiber] | None = None
        self._lane: MessageQueue | None = None  # priority 0, which is nearly all
        self._lanes: dict[int, MessageQueue] | None = None  # the others
        self._indexes: dict[str, Index] | None = None  # by attribute of messages

    @property
    def count(self) -> int:
        """Messages that wait."""
        return sum(map(len, self._by_urgency()))

    @property
    def full(self) -> bool:
        return self.taken >= self.capacity

    def put(self, message: Message) -> StorageReceipt | None:
        """Add `message`. The caller has seen that the mailbox is neither full nor closed, or it is a `CONTROL` one.

        What it answers, if anything, is what a sender has to wait for.
        """
        priority = message.priority
        if priority == 0:
            lane = self._lane
            if lane is None:
                lane = self._lane = MessageQueue()
        else:
            lane = self._lane_of(priority)
        lane.items.append(message)
        if priority != CONTROL:
            self.taken += 1
        if self._indexes is not None:
            for attribute, index in self._indexes.items():
                add(index, getattr(message, attribute), message)
        receiver = self.receiver
        if receiver is not None:
            self.receiver = None
            if self.selectors:
                self._note(receiver, message)
            receiver.wake()
        elif self.selectors:
            self._wake_for(message)
        return None

    def take(self) -> Message | None:
        """Remove the first message of the most urgent lane; None if there is none."""
        lane = self._lane if self._lanes is None else self._most_urgent()
        if lane is None or not lane.items:
            return None
        message = lane.items.popleft() if lane.dead is None else lane.pop()
        if self._indexes is not None and drop(self._indexes, message):
            self._indexes = None  # the mailbox is empty: who receives in order from now on pays nothing
        if self.called:
            self._forget(message)
        if self._senders or message.priority == CONTROL:
            self._free_place(message)
        else:
            self.taken -= 1
        received = self.received
        if received is None:
            received = self._remember()
        received.append((message.id, message.type, message.sender, message.priority, message.correlation))
        return message

    def select(self, selection: Selector) -> Message | None:
        """Remove the first message that `selection` matches, in the order of `take`; None if there is none."""
        for message in self._candidates(selection):
            if selection.matches(message):
                self.discard(message)
                self._remember().append(
                    (message.id, message.type, message.sender, message.priority, message.correlation)
                )
                return message
        return None

    def discard(self, message: Message) -> None:
        """Remove `message`, which is in the mailbox."""
        lane = self._lane if message.priority == 0 else self._lane_of(message.priority)
        assert lane is not None
        lane.discard(message)
        if self._indexes is not None and drop(self._indexes, message):
            self._indexes = None
        if self.called:
            self._forget(message)
        self._free_place(message)

    def peek(self) -> Iterator[Message]:
        """All messages that wait, in the order of `take`."""
        return chain.from_iterable(self._by_urgency())

    def _candidates(self, selection: Selector) -> Iterable[Message]:
        """Messages that may match, in the order of `take`: by the sharpest index there is."""
        for attribute in INDEXED:
            key = getattr(selection, attribute)
            if key is not None:
                if self._indexes is None:
                    self._indexes = {}
                index = self._indexes.get(attribute)
                if index is None:
                    index = self._indexes[attribute] = index_by(attribute, self.peek())
                urgencies = (0,) if self._lanes is None else sorted({0, *self._lanes}, reverse=True)
                return chain.from_iterable(entry(index, (key, urgency)) for urgency in urgencies)
        return self.peek()

    def _remember(self) -> deque[tuple[int, str, int, int, int]]:
        if self.received is None:
            self.received = deque(maxlen=RECEIVED)
        return self.received

    # ---- waiting

    def enlist(self, thread: Fiber, selection: Selector | None = None) -> None:
        """Have `thread`, which parks now, woken for the next message it wants. Then it looks, and calls `delist`."""
        if selection is None and self.receiver is None and not self.selectors:
            self.receiver = thread
            thread.waits_for = "message"
            return
        if self.selectors is None:
            self.selectors = []
        self.selectors.append((thread, selection))
        thread.waits_for = "message" if selection is None else selection

    def delist(self, thread: Fiber) -> None:
        """`thread` was woken and has looked, or was cancelled. What it was woken for and did not take is for others."""
        if self.receiver is not None or self.selectors:
            self._leave(thread)
        if self.called:
            message = self.called.pop(thread, None)
            if message is not None:
                self._offer(message)

    def line_up(self, thread: Fiber) -> None:
        """Have `thread`, which parks now, woken when a place is free for it. Then it calls `leave_line`."""
        if self._senders is None:
            self._senders = deque()
        self._senders.append(thread)

    def leave_line(self, thread: Fiber) -> bool:
        """Take `thread` out of the senders. Whether a place is reserved for it: it uses that, or passes it on."""
        if self._senders and thread in self._senders:
            self._senders.remove(thread)
            return False
        return True

    def use_place(self) -> None:
        """The sender for which a place was reserved puts its message now, or sees that the mailbox is closed."""
        if not self.closed:
            self.taken -= 1

    def pass_on_place(self) -> None:
        """Reserve a place that became free for the next sender, if one waits."""
        if self.closed:
            return
        if self._senders:
            self._senders.popleft().wake()
        else:
            self.taken -= 1

    def close(self) -> list[Message]:
        """Refuse everything from now on, wake whoever waits, and hand back what was not received, most urgent first."""
        self.closed = True
        rest = list(self.peek())
        receivers = [] if self.receiver is None else [self.receiver]
        receivers += [thread for thread, _ in self.selectors or ()]
        senders = self._senders or ()
        self.receiver = self.selectors = self._senders = self.called = None
        self._lane = self._lanes = self._indexes = None
        self.taken = 0
        for waiter in (*receivers, *senders):
            waiter.wake()
        return rest

    # ---- lanes and places

    def _lane_of(self, priority: int) -> MessageQueue:
        """The lane of a priority that is not 0."""
        if self._lanes is None:
            self._lanes = {}
        lane = self._lanes.get(priority)
        if lane is None:
            lane = self._lanes[priority] = MessageQueue()
        return lane

    def _most_urgent(self) -> MessageQueue | None:
        """The first lane that is not empty. The empty ones before it are given up."""
        lanes = self._lanes
        while lanes:
            urgency = max(lanes)
            if urgency < 0 and self._lane is not None and self._lane.items:
                return self._lane
            if lanes[urgency].items:
                return lanes[urgency]
            del lanes[urgency]
        self._lanes = None
        return self._lane

    def _by_urgency(self) -> list[MessageQueue]:
        lanes = dict(self._lanes or {})
        if self._lane is not None:
            lanes[0] = self._lane
        return [lanes[urgency] for urgency in sorted(lanes, reverse=True)]

    def _free_place(self, message: Message) -> None:
        if message.priority != CONTROL:
            self.pass_on_place()

    # ---- waiters

    def _offer(self, message: Message) -> None:
        """Wake the first receiver that wants `message`, which was left lying by the one that was woken for it."""
        receiver = self.receiver
        if receiver is not None:
            self.receiver = None
            if self.selectors:
                self._note(receiver, message)
            receiver.wake()
        else:
            self._wake_for(message)

    def _note(self, receiver: Fiber, message: Message) -> None:
        """`receiver` is woken for `message`, and others still wait: it may take another one, or none.

        Only those matter that wait now: who comes later looks first, and waits if it does not want `message`.
        """
        if self.called is None:
            self.called = {}
        self.called[receiver] = message

    def _forget(self, message: Message) -> None:
        """`message` has left the mailbox."""
        called = self.called or {}
        for receiver in [receiver for receiver, wanted in called.items() if wanted is message]:
            del called[receiver]

    def _wake_for(self, message: Message) -> None:
        """Wake the first of the further receivers that wants `message`."""
        selectors = self.selectors or []
        for place, (thread, selection) in enumerate(selectors):
            try:
                wanted = selection is None or selection.matches(message)
            except Exception:
                wanted = True  # the receiver's own predicate fails: there, and not at the sender
            if wanted:
                del selectors[place]
                if selectors:
                    self._note(thread, message)
                thread.wake()
                return

    def _leave(self, thread: Fiber) -> bool:
        """Take `thread` out of the receivers; False if it was called from there before."""
        if self.receiver is thread:
            self.receiver = None
            return True
        if self.selectors:
            for place, (other, _) in enumerate(self.selectors):
                if other is thread:
                    del self.selectors[place]
                    return True
        return False
