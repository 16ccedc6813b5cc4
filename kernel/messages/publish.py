"""The publication subsystem: delivers a message that is published on a topic to each subscriber of the topic.

The gate calls its handlers. For a durable publisher, `kernel.durable.messages` calls `prepare` and `offer` itself. A
publisher never waits for room: if the mailbox of a subscriber is full, that subscriber's copy becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ipc.messages import Message
from ipc.syscalls import Publish, Subscribe, Unsubscribe
from kernel.core.process import Process
from kernel.gate import Gate
from kernel.lib.validation import check_seconds, check_text
from kernel.messages.messaging import Messaging
from kernel.messages.topics import Topics
from kernel.messages.validation import MAX_TYPE, build_message, check_heading, isolate_bounded

if TYPE_CHECKING:
    from kernel.core.mailbox import StorageReceipt


class Publisher:
    """Publishes by topic, and stores the subscriptions."""

    def __init__(self, gate: Gate, messaging: Messaging) -> None:
        self._messaging = messaging
        self._topics = Topics()
        gate.register({Publish: self.publish, Subscribe: self.subscribe, Unsubscribe: self.unsubscribe})

    def publish(self, process: Process, call: Publish) -> int | Coroutine[Any, Any, int]:
        receipt: StorageReceipt | None = None
        delivered = 0
        subscribers, call = self.prepare(call)
        for recipient in subscribers:
            outcome = self.offer(recipient, build_message(process, recipient, call, self._messaging.next_id()))
            if outcome is not False:
                delivered += 1
                receipt = outcome or receipt
        return delivered if receipt is None else receipt.answer_after_commit(delivered)

    def prepare(self, call: Publish) -> tuple[list[Process], Publish]:
        """The subscribers, and `call` with its body encoded once for all of them.

        Raises every error that `call` can cause, so that a call that fails has been offered to no subscriber.
        """
        subscribers = self._topics.subscribers(call.topic)
        check_heading(call.topic, call.priority)
        if call.lifetime is not None:
            check_seconds(call.lifetime, "lifetime")
        return subscribers, msgspec.structs.replace(call, body=isolate_bounded(call.body))

    def offer(self, recipient: Process, message: Message) -> StorageReceipt | Literal[False] | None:
        """Put `message` into the mailbox of `recipient`, and return the receipt of `Mailbox.put`.

        If the mailbox is full, the message becomes a dead letter, and False is returned.
        """
        box = recipient.open_mailbox()
        if box.full and not self._messaging.make_room(recipient, box):
            self._messaging.dead_letters.bury(message, "the subscriber's mailbox was full")
            return False
        return box.put(message)

    def subscribe(self, process: Process, call: Subscribe) -> None:
        check_text(call.pattern, "a pattern", MAX_TYPE)
        self._topics.subscribe(process, call.pattern)

    def unsubscribe(self, process: Process, call: Unsubscribe) -> None:
        self._topics.unsubscribe(process, call.pattern)

    def process_ended(self, process: Process) -> None:
        self._topics.process_ended(process)
