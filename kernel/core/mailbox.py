"""The mailbox of a process: bounded, ordered by priority and then by arrival, with waiting senders and receivers.

The message subsystem calls it. A message stays in the mailbox until its receiver takes it, so a cancelled wait loses no
message. A selective receive by correlation, sender or type uses an index of that attribute, which is built at the first
such receive and dropped when the mailbox is empty. The index costs amortized constant time per message, whatever the
number of messages. The mailbox wakes threads; it never looks at processes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import chain
from math import inf
from typing import Any

from ipc.messages import Message
from kernel.core.body_memory import BodyMemory
from kernel.core.fiber import Fiber
from kernel.core.message_queue import INDEXED, Index, MessageQueue, add_to_index, build_index, drop_from_all, indexed
from kernel.core.plain_wait import ANY_MESSAGE_WAIT
from kernel.core.receivers import WaitingReceivers, WokenReceivers
from kernel.core.selector import Selector
from kernel.core.storage_receipt import StorageReceipt

CAPACITY = 1000  # messages
BYTES = 64 * 1024 * 1024  # of the counted bodies in one mailbox: see `Mailbox.charge`
RECEIVED = 5  # how many received messages a crash report quotes, by their headings
CONTROL = 21  # the priority of the kernel's own messages: above all others, and not counted in the capacity


class Mailbox:
    """A message queue for each priority. Made at the first use, since most processes never get a message.

    It is bounded by the number of messages and by the bytes of their bodies. Small bodies have the size 0, so a mailbox
    without large bodies, in which `bytes` is 0, counts messages only. A body of any size fits into a mailbox that
    holds no other large body.
    """

    __slots__ = (
        "_accounts",
        "_capacity",
        "_indexes",
        "_normal_queue",
        "_other_queues",
        "_senders",
        "_sizes",
        "byte_capacity",
        "bytes",
        "closed",
        "further",
        "next_deadline",
        "open_places",
        "received",
        "receiver",
        "taken",
        "wanted",
        "woken",
    )

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = self.open_places = capacity
        self.byte_capacity = BYTES
        self.bytes = 0  # of counted bodies in the mailbox, and of those of senders that were woken
        self.closed = False
        self.next_deadline = inf  # no message expires before; lower than the first deadline if that message has left
        self.taken = 0  # places taken by messages other than `CONTROL` ones, or reserved for senders that were woken
        self.receiver: Fiber | None = None  # has waited longer than all in `further`
        self.received: deque[tuple[int, str, int, int, int]] | None = None  # headings of the last received messages
        self.further: WaitingReceivers | None = None  # receivers that wait behind `receiver`; None if there are none
        self.wanted: Selector | None = None  # by `receiver`; None for any message
        self.woken: WokenReceivers | None = None  # made when a receiver is woken while others wait
        self._senders: OrderedDict[Fiber, int] | None = None  # wait for room for a size, in order of arrival
        self._accounts = False  # whether a place that becomes free concerns a sender, or bytes
        self._sizes: dict[int, tuple[int, int, BodyMemory]] | None = None  # of counted bodies, by id: see `charge`
        self._normal_queue: MessageQueue | None = None  # of priority 0, which nearly all messages have
        self._other_queues: dict[int, MessageQueue] | None = None  # of the other priorities
        self._indexes: dict[str, Index] | None = None  # by attribute of messages

    @property
    def count(self) -> int:
        """How many messages wait."""
        return sum(map(len, self._by_urgency()))

    @property
    def control_count(self) -> int:
        """How many messages of the kernel wait. No other bound holds for them."""
        queue = None if self._other_queues is None else self._other_queues.get(CONTROL)
        return 0 if queue is None else len(queue)

    @property
    def senders(self) -> list[Any]:
        """The threads that wait for a place, in order of arrival."""
        return list(self._senders or ())

    @property
    def has_senders(self) -> bool:
        return bool(self._senders)

    @property
    def full(self) -> bool:
        return not self.has_room()

    @property
    def capacity(self) -> int:
        """The most messages. `open_places` is the same while no large body counts; otherwise 0: `has_room` decides."""
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: int) -> None:
        self._capacity = capacity
        self._add_bytes(0)
        self.wake_senders()

    def _add_bytes(self, size: int) -> None:
        self.bytes += size
        self.open_places = 0 if self.bytes else self._capacity

    def has_room(self, size: int = 0) -> bool:
        """Whether a new sender may put a body of `size` bytes: it fits, and no other sender waits for room."""
        return self.taken < self._capacity and (not self.bytes or (not self._senders and self._fits(size)))

    def _fits(self, size: int) -> bool:
        return not size or not self.bytes or self.bytes + size <= self.byte_capacity

    def charge(self, number: int, size: int, share: int, memory: BodyMemory) -> None:
        """Count `size` bytes until message `number`, which is put next, leaves. Then give `share` bytes to `memory`.

        The share is less than the size if many mailboxes have the same body.
        """
        if self._sizes is None:
            self._sizes = {}
        self._sizes[number] = size, share, memory
        self._accounts = True
        self._add_bytes(size)

    def put(self, message: Message) -> StorageReceipt | None:
        """Add `message`. The mailbox must have room and be open, unless the message is a `CONTROL` one.

        Returns None, or from the mailbox of a durable process a receipt for which the sender must wait.
        """
        priority = message.priority
        if priority == 0:
            queue = self._normal_queue
            if queue is None:
                queue = self._normal_queue = MessageQueue()
        else:
            queue = self._queue_of(priority)
        queue.items.append(message)
        if priority != CONTROL:
            self.taken += 1
        if message.deadline is not None and message.deadline < self.next_deadline:
            self.next_deadline = message.deadline
        if self._indexes is not None:
            for attribute, index in self._indexes.items():
                add_to_index(index, getattr(message, attribute), message)
        receiver = self.receiver
        if receiver is not None and (self.wanted is None or self.wanted.may_match(message)):
            self.receiver = self.wanted = None
            if self.further is not None:
                self._note_woken(receiver, message)
            receiver.wake()
        elif self.further is not None:
            self._wake_for(message)
        return None

    def take(self) -> Message | None:
        """Remove and return the first message of the most urgent queue; None if there is no message."""
        queue = self._normal_queue if self._other_queues is None else self._most_urgent()
        if queue is None or not queue.items:
            return None
        message = queue.items.popleft() if queue.dead is None else queue.pop()
        if self._indexes is not None and drop_from_all(self._indexes, message):
            self._indexes = None  # the mailbox is empty; without an index, receiving in order costs less
        if self.woken:
            self.woken.forget(message)
        if self._accounts or message.priority == CONTROL:
            self._free_place(message)
        else:
            self.taken -= 1
        received = self.received
        if received is None:
            received = self._received_ring()
        received.append((message.id, message.type, message.sender, message.priority, message.correlation))
        return message

    def select(self, selector: Selector) -> Message | None:
        """Remove and return the first message in the order of `take` that `selector` matches; None if there is none."""
        for message in self._candidates(selector):
            if selector.matches(message):
                self.discard(message)
                self._received_ring().append(
                    (message.id, message.type, message.sender, message.priority, message.correlation)
                )
                return message
        return None

    def discard(self, message: Message) -> None:
        """Remove `message`, which must be in the mailbox."""
        queue = self._normal_queue if message.priority == 0 else self._queue_of(message.priority)
        assert queue is not None
        queue.discard(message)
        if self._indexes is not None and drop_from_all(self._indexes, message):
            self._indexes = None
        if self.woken:
            self.woken.forget(message)
        self._free_place(message)

    def peek(self) -> Iterator[Message]:
        """All waiting messages, in the order of `take`."""
        return chain.from_iterable(self._by_urgency())

    def _candidates(self, selector: Selector) -> Iterable[Message]:
        """The messages that may match, in the order of `take`. Uses the index of the most selective attribute given."""
        for attribute in INDEXED:
            key = getattr(selector, attribute)
            if key is not None:
                if self._indexes is None:
                    self._indexes = {}
                index = self._indexes.get(attribute)
                if index is None:
                    index = self._indexes[attribute] = build_index(attribute, self.peek())
                urgencies = (0,) if self._other_queues is None else sorted({0, *self._other_queues}, reverse=True)
                return chain.from_iterable(indexed(index, (key, urgency)) for urgency in urgencies)
        return self.peek()

    def _received_ring(self) -> deque[tuple[int, str, int, int, int]]:
        if self.received is None:
            self.received = deque(maxlen=RECEIVED)
        return self.received

    # ---- waiting

    def add_receiver(self, thread: Fiber, selector: Selector | None = None) -> None:
        """Wake `thread`, which parks now, for the next message that it wants.

        The woken thread takes a message, if one is left, and calls `end_receive`.
        """
        if self.receiver is None and self.further is None:
            self.receiver, self.wanted = thread, selector
        else:
            if self.further is None:
                self.further = WaitingReceivers()
            self.further.add(thread, selector)
        thread.waits_for = ANY_MESSAGE_WAIT if selector is None else selector

    def end_receive(self, thread: Fiber) -> None:
        """End the wait of `thread`, which was woken or cancelled.

        If the message for which it was woken is still in the mailbox, offer that message to the next receiver.
        """
        if self.receiver is thread:
            self.receiver = self.wanted = None
        elif self.further is not None:
            self._remove_further(thread)
        if self.woken:
            message = self.woken.pop(thread)
            if message is not None:
                self._offer(message)

    def add_sender(self, thread: Fiber, size: int = 0) -> None:
        """Wake `thread`, which parks now, when room for a body of `size` bytes is reserved for it.

        The woken thread calls `end_send_wait`.
        """
        if self._senders is None:
            self._senders = OrderedDict()
        self._senders[thread] = size
        self._accounts = True

    def end_send_wait(self, thread: Fiber) -> bool:
        """End the wait of `thread`. True if room is reserved for it; the thread must use the room or pass it on."""
        senders = self._senders
        if not senders or senders.pop(thread, None) is None:
            return True
        self.wake_senders()  # the next ones may need less room than this one
        return False

    def use_place(self, size: int = 0) -> None:
        """Free the reserved room: its sender puts a message into it now, unless the mailbox is closed."""
        if not self.closed:
            self.taken -= 1
            self._add_bytes(-size)

    def pass_on_place(self, size: int = 0) -> None:
        """Reserve room, which has become free, for the next waiting senders. If no sender waits, it stays free."""
        if not self.closed:
            self.use_place(size)
            self.wake_senders()
            self._accounts = bool(self._senders or self._sizes)

    def wake_senders(self) -> None:
        """Reserve room for as many of the waiting senders as fit, in order of arrival, and wake them."""
        senders = self._senders
        while senders and self.taken < self._capacity and self._fits(next(iter(senders.values()))):
            thread, size = senders.popitem(last=False)
            self.taken += 1
            self._add_bytes(size)
            thread.wake()

    def close(self) -> list[Message]:
        """Close the mailbox, wake all waiting threads, and return the unread messages, the most urgent first."""
        self.closed = True
        rest = list(self.peek())
        receivers = [] if self.receiver is None else [self.receiver]
        receivers += self.further or ()
        senders = self.senders
        for _, share, memory in (self._sizes or {}).values():
            memory.used -= share
        self._sizes, self.bytes = None, 0
        self.receiver = self.wanted = self.further = self._senders = self.woken = None
        self._normal_queue = self._other_queues = self._indexes = None
        self.taken = 0
        for waiter in (*receivers, *senders):
            waiter.wake()
        return rest

    # ---- queues and places

    def _queue_of(self, priority: int) -> MessageQueue:
        """The queue of a priority other than 0, made at first use."""
        if self._other_queues is None:
            self._other_queues = {}
        queue = self._other_queues.get(priority)
        if queue is None:
            queue = self._other_queues[priority] = MessageQueue()
        return queue

    def _most_urgent(self) -> MessageQueue | None:
        """The most urgent queue with a message. Drops the empty queues that are more urgent."""
        queues = self._other_queues
        while queues:
            urgency = max(queues)
            if urgency < 0 and self._normal_queue is not None and self._normal_queue.items:
                return self._normal_queue
            if queues[urgency].items:
                return queues[urgency]
            del queues[urgency]
        self._other_queues = None
        return self._normal_queue

    def _by_urgency(self) -> list[MessageQueue]:
        queues = dict(self._other_queues or {})
        if self._normal_queue is not None:
            queues[0] = self._normal_queue
        return [queues[urgency] for urgency in sorted(queues, reverse=True)]

    def _free_place(self, message: Message) -> None:
        if message.priority == CONTROL:
            return
        size = 0
        if self._sizes and message.id in self._sizes:
            size, share, memory = self._sizes.pop(message.id)
            memory.used -= share
        self.pass_on_place(size)

    # ---- waiters

    def _offer(self, message: Message) -> None:
        """Wake another receiver that wants `message`: the receiver that was woken for it did not take it."""
        receiver = self.receiver
        if receiver is not None and (self.wanted is None or self.wanted.may_match(message)):
            self.receiver = self.wanted = None
            if self.further is not None:
                self._note_woken(receiver, message)
            receiver.wake()
        elif self.further is not None:
            self._wake_for(message)

    def _note_woken(self, receiver: Fiber, message: Message) -> None:
        if self.woken is None:
            self.woken = WokenReceivers()
        self.woken.add(receiver, message)

    def _wake_for(self, message: Message) -> None:
        """Wake the first of the further receivers that wants `message`."""
        assert self.further is not None
        thread = self.further.first_for(message)
        if thread is not None:
            self._remove_further(thread)
            if self.receiver is not None or self.further is not None:
                self._note_woken(thread, message)
            thread.wake()

    def _remove_further(self, thread: Fiber) -> None:
        """Remove `thread` from the further receivers. Does nothing if it was woken already."""
        assert self.further is not None
        self.further.remove(thread)
        if not self.further:
            self.further = None
