"""The slots of one model: who holds one, who waits for one, and the leases counted in tokens.

Owned by a model runtime, which tells it what the driver reports. First come, first served. It decides and keeps the
books; it speaks to the driver through `send` and starts nothing.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

from kernel.drivers import protocol
from kernel.slots.sequence import PARKED, QUEUED, RUNNING, Sequence

READER, SUSPENDED = "reader", "suspended"  # why a sequence may not run


class Slots:
    """`count` slots, each a right to `lease` tokens at a time. Closed until `open` says that a driver listens."""

    def __init__(self, count: int, lease: int, send: Callable[[protocol.ToDriver], None]) -> None:
        self.count = count
        self.taken: set[int] = set()  # ids of the sequences that hold a slot
        self.queue: list[Sequence] = []  # those that wait for one, by id
        self._lease = lease
        self._send = send
        self._open = False

    def open(self) -> None:
        """The driver is ready: grant what can be granted."""
        self._open = True
        self._fill()

    def close(self) -> None:
        """The driver is gone, and with it every grant."""
        self._open = False
        self.taken.clear()

    def enqueue(self, sequence: Sequence) -> None:
        """Let `sequence` run as soon as a slot is free, in its place by id; parked as long as something holds it."""
        self._check_reader(sequence)
        if sequence.holds:
            sequence.state = PARKED
            return
        sequence.state = QUEUED
        bisect.insort(self.queue, sequence, key=_by_id)
        self._fill()

    def dequeue(self, sequence: Sequence) -> None:
        """It waits no longer, if it did."""
        place = bisect.bisect_left(self.queue, sequence.id, key=_by_id)
        if place < len(self.queue) and self.queue[place] is sequence:
            del self.queue[place]

    def free(self, sequence: Sequence) -> None:
        """Take its slot back, if it has one, and give it to the next."""
        self.taken.discard(sequence.id)
        self._fill()

    def hold(self, sequence: Sequence, why: str) -> None:
        """Take it off its slot and keep it off until released; what it has computed stays in the driver."""
        sequence.holds.add(why)
        self.dequeue(sequence)
        if sequence.state == RUNNING:
            self._send(protocol.Revoke(sequence.id))
            sequence.lease = 0
        elif sequence.state == QUEUED:
            sequence.state = PARKED

    def release(self, sequence: Sequence, why: str) -> None:
        """Lift a hold; without any left it queues for a slot again, in its old place."""
        if why not in sequence.holds:
            return
        sequence.holds.discard(why)
        if sequence.holds or sequence.finished or sequence.cancelled:
            return
        if sequence.id in self.taken:
            self._renew(sequence)  # its revocation was not answered yet: simply go on
        else:
            self.enqueue(sequence)

    def spent(self, sequence: Sequence, tokens: int) -> None:
        """The driver reported so many new tokens. Renews at half of the lease, so that the driver never waits."""
        sequence.lease -= tokens
        if sequence.lease * 2 <= self._lease and not sequence.holds:
            self._renew(sequence)

    def parked(self, sequence: Sequence) -> None:
        """The driver stopped it at the end of its lease, or because it was revoked."""
        if sequence.id not in self.taken or sequence.cancelled:
            return
        if not sequence.holds:
            if sequence.lease <= 0:
                self._renew(sequence)
            return  # a renewal is on its way already
        sequence.state = PARKED
        self.free(sequence)

    def _fill(self) -> None:
        """Grant free slots to the head of the queue."""
        while self._open and self.queue and len(self.taken) < self.count:
            sequence = self.queue.pop(0)
            self._check_reader(sequence)  # who may have fallen behind while it waited
            if sequence.holds:
                sequence.state = PARKED
                continue
            self.taken.add(sequence.id)
            sequence.state = RUNNING
            if sequence.resident:
                self._renew(sequence)
            else:
                self._admit(sequence)

    def _admit(self, sequence: Sequence) -> None:
        sequence.resident = True
        sequence.lease = self._lease
        self._send(
            protocol.Admit(
                sequence.id,
                sequence.prompt if sequence.prompt_ids is None else "",
                sequence.sampling,
                sequence.lease,
                sequence.prompt_ids,
                sequence.ids,
                sequence.released,
            )
        )

    def _renew(self, sequence: Sequence) -> None:
        """Fill the lease up, unless the reader is behind: then the driver parks it when the rest is used."""
        self._check_reader(sequence)
        if READER in sequence.holds:
            return
        left = max(sequence.lease, 0)
        sequence.lease = self._lease
        self._send(protocol.Renew(sequence.id, self._lease - left))

    def _check_reader(self, sequence: Sequence) -> None:
        """Hold the sequence while whoever reads its tokens has too many of them before him."""
        stream = sequence.process.stream if sequence.emit else None
        if stream is not None and stream.congested and READER not in sequence.holds:
            sequence.holds.add(READER)
            stream.when_drained(lambda: self.release(sequence, READER))


def _by_id(sequence: Sequence) -> int:
    return sequence.id
