"""The publication subsystem: delivers a message that is published on a topic to each subscriber of the topic.

The gate calls its handlers. For a durable publisher, `kernel.durable.messages` calls `prepare` and `offer` itself. A
publisher never waits for room: if the mailbox of a subscriber is full, that subscriber's copy becomes a dead letter.
`publications` takes over what is too long for one turn of the loop.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ipc.errors import Busy
from ipc.messages import Message
from ipc.syscalls import Publish, Subscribe, Unsubscribe
from kernel.core.process import Process
from kernel.gate import Gate
from kernel.lib.validation import check_seconds, check_text
from kernel.messages.body_size import counted_size
from kernel.messages.messaging import Messaging
from kernel.messages.publications import DELIVERIES, Publication, PublicationQueue
from kernel.messages.topics import MAX_PATTERN, Search, Topics
from kernel.messages.validation import build_message, check_heading, isolate_bounded

if TYPE_CHECKING:
    from kernel.core.storage_receipt import StorageReceipt


class Publisher:
    """Publishes by topic, and stores the subscriptions."""

    def __init__(self, gate: Gate, messaging: Messaging) -> None:
        self._messaging = messaging
        self._topics = Topics()
        self._queue = PublicationQueue(messaging.loop, messaging.memory, self._deliver)
        gate.register({Publish: self.publish, Subscribe: self.subscribe, Unsubscribe: self.unsubscribe})

    def publish(self, process: Process, call: Publish) -> int | Coroutine[Any, Any, int]:
        search, call = self.prepare(call)
        if self._queue.has(process) or not search.advance() or len(search.found) > DELIVERIES:
            return self._queue.add(process, call, search)
        receipt: StorageReceipt | None = None
        delivered, count = 0, len(search.found)
        for recipient in search.found:
            message = build_message(process, recipient, call, self._messaging.next_id())
            outcome = self.offer(recipient, message, count)
            if outcome is not False:
                delivered += 1
                receipt = outcome or receipt
        return delivered if receipt is None else receipt.answer_after_commit(delivered)

    def _deliver(self, publication: Publication, recipient: Process) -> None:
        """Give a subscriber its copy of a publication in the queue, unless it has ended since."""
        if recipient.ended:
            return
        number = self._messaging.next_id()
        message = build_message(publication.process, recipient, publication.call, number)
        outcome = self.offer(recipient, message, len(publication.search.found))
        if outcome is not False:
            publication.delivered += 1
            publication.receipt = outcome or publication.receipt

    def prepare(self, call: Publish) -> tuple[Search, Publish]:
        """The search for the subscribers, and `call` with its body encoded once for all of them.

        Raises every error that `call` can cause, so that a call that fails has been offered to no subscriber.
        """
        search = self._topics.search(call.topic)
        check_heading(call.topic, call.priority)
        if call.lifetime is not None:
            check_seconds(call.lifetime, "lifetime")
        call = msgspec.structs.replace(call, body=isolate_bounded(call.body))
        size, memory = counted_size(call.body), self._messaging.memory
        memory.take(size)  # raises `Busy`, also if there is no subscriber
        memory.used -= size
        return search, call

    def offer(self, recipient: Process, message: Message, copies: int = 1) -> StorageReceipt | Literal[False] | None:
        """Put `message` into the mailbox of `recipient`, and return the receipt of `Mailbox.put`.

        If the mailbox is full, the message becomes a dead letter, and False is returned. The body is shared by so many
        `copies`.
        """
        box, size = recipient.open_mailbox(), counted_size(message.body)
        if not self._messaging.make_room(recipient, box, size):
            self._messaging.dead_letters.bury(message, "the subscriber's mailbox was full")
            return False
        if not size:
            return box.put(message)
        try:
            return self._messaging.put_large(box, message, size, -(-size // copies))
        except Busy:  # other messages took the memory since `prepare`
            self._messaging.dead_letters.bury(message, "the memory for messages was full")
            return False

    def subscribe(self, process: Process, call: Subscribe) -> None:
        check_text(call.pattern, "a pattern", MAX_PATTERN, least=1)
        self._topics.subscribe(process, call.pattern)

    def unsubscribe(self, process: Process, call: Unsubscribe) -> None:
        self._topics.unsubscribe(process, call.pattern)

    def process_ended(self, process: Process) -> None:
        self._topics.process_ended(process)
