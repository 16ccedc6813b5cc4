"""The slots of one model: who holds one, and the leases counted in tokens. Who gets one is for a policy to say.

Owned by a model runtime, which tells it what the driver reports. It keeps the books and asks its policy; it speaks to
the driver through `send` and starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from kernel.drivers import protocol
from kernel.models.sequence import PARKED, QUEUED, RUNNING, Sequence
from kernel.policy.group import PROMPT_WEIGHT
from kernel.policy.policy import Grant, Policy, hand_over

READER, SUSPENDED, SWAPPING = "reader", "suspended", "swapping"  # why a sequence may not run


class LeaseTable:
    """`count` slots, each a right to `lease` tokens at a time. Closed until `open` says that a driver listens.

    `count` may change: fewer slots are taken from nobody who holds one.
    """

    def __init__(
        self,
        count: int,
        lease: int,
        policy: Policy,
        clock: Callable[[], float],
        send: Callable[[protocol.ToDriver], None],
    ) -> None:
        self.count = count
        self._lease = lease
        self._policy = policy
        self._clock = clock
        self._send = send
        self.on_relief: Callable[[Sequence, str], None] = self.unblock  # called when a reader has caught up
        self.on_reason: Callable[[str], None] | None = None  # called when the policy changed something of itself
        self.on_shed: Callable[[Sequence], None] = self.free  # called when a policy gives a sequence up
        self._reason = policy.reason
        self._open = False
        self._holders: dict[int, Sequence] = {}
        self._leaving: set[int] = set()  # of the holders, those whose slot is free when the driver has let go of them

    @property
    def taken(self) -> set[int]:
        """The ids of the sequences that hold a slot."""
        return set(self._holders)

    @property
    def used(self) -> int:
        """How many sequences hold a slot."""
        return len(self._holders)

    @property
    def waiting(self) -> int:
        """How many sequences wait for a slot."""
        return self._policy.waiting

    @property
    def queue(self) -> list[Sequence]:
        """Those that wait for a slot, the next one first."""
        return cast("list[Sequence]", self._policy.line())

    @property
    def policy(self) -> Policy:
        """Who says whom to run."""
        return self._policy

    def switch(self, policy: Policy) -> None:
        """Let `policy` decide from now on. Who runs goes on, unless it decides otherwise; nobody is lost."""
        hand_over(self._policy, policy, self._clock())
        self._policy = policy
        self._reason = policy.reason
        self.reschedule()

    def open(self) -> None:
        """The driver is ready: grant what can be granted."""
        self._open = True
        self.reschedule()

    def close(self) -> None:
        """The driver is gone, and with it every grant."""
        self._open = False
        for sequence in self._holders.values():
            self._policy.leave(sequence, self._clock())
        self._holders.clear()
        self._leaving.clear()

    def evict(self) -> None:
        """Grant no more, and take the slots of all who can stop; they wait again."""
        self._open = False
        for sequence in tuple(self._holders.values()):
            if sequence.preemptible and sequence.id not in self._leaving:
                self._policy.leave(sequence, self._clock())
                self._policy.arrive(sequence, self._clock())
                self._preempt(sequence)

    def clear(self) -> None:
        """Nobody wants a slot any more."""
        self.close()
        for sequence in self.queue:
            self._policy.leave(sequence, self._clock())

    def reschedule(self) -> None:
        """Do what the policy says, which may have changed with time."""
        while self._open:
            decision = self._policy.decide(self.count - len(self._leaving), self._clock())
            for sequence in cast("list[Sequence]", decision.preempt):
                self._preempt(sequence)
            if self._policy.reason is not self._reason:
                self._reason = self._policy.reason
                if self.on_reason is not None:
                    self.on_reason(self._reason)
            refused = [grant for grant in decision.run if not self._grant(grant)]
            for sequence in cast("list[Sequence]", decision.shed):
                self.on_shed(sequence)
            if not refused:
                return

    def enqueue(self, sequence: Sequence) -> None:
        """Let `sequence` run as soon as the policy has a slot for it; parked as long as something holds it."""
        if self._is_blocked(sequence):
            self._policy.leave(sequence, self._clock())
            self._set_state(sequence, PARKED)
            return
        self._set_state(sequence, QUEUED)
        self._policy.arrive(sequence, self._clock())
        self.reschedule()

    def withdraw(self, sequence: Sequence) -> None:
        """It wants to run no more. A slot that it holds is free when the driver has let go of it: see `free`."""
        self._policy.leave(sequence, self._clock())
        if sequence.id in self._holders:
            self._leaving.add(sequence.id)

    def free(self, sequence: Sequence) -> None:
        """Take its slot back, if it has one, and give it to the next."""
        self._policy.leave(sequence, self._clock())
        self._give_up(sequence)
        self.reschedule()

    def reprioritise(self, sequence: Sequence) -> None:
        """Its priority has changed."""
        self._policy.reprioritise(sequence, self._clock())
        self.reschedule()

    def block(self, sequence: Sequence, why: str) -> None:
        """Take it off its slot and keep it off until released; what it has computed stays in the driver."""
        sequence.block_reasons.add(why)
        if sequence.state == RUNNING and sequence.preemptible:
            self._revoke(sequence)
            self.withdraw(sequence)
        elif sequence.state == QUEUED:
            self.withdraw(sequence)
            self._set_state(sequence, PARKED)

    def unblock(self, sequence: Sequence, why: str) -> None:
        """Lift a hold; without any left it queues for a slot again, in its old place."""
        if why not in sequence.block_reasons:
            return
        sequence.block_reasons.discard(why)
        if sequence.block_reasons or sequence.finished or sequence.cancelled:
            return
        if sequence.id in self._leaving:  # its revocation was not answered yet
            self._give_up(sequence)
            self.enqueue(sequence)
        elif sequence.id in self._holders:
            self._renew(sequence)
        else:
            self.enqueue(sequence)

    def charge_prompt(self, sequence: Sequence, tokens: int) -> None:
        """Its prompt turned out to have so many tokens, which the driver reads."""
        sequence.group.service += PROMPT_WEIGHT * tokens
        self._policy.charge_prompt(sequence, tokens, self._clock())

    def charge_tokens(self, sequence: Sequence, tokens: int) -> None:
        """The driver reported so many new tokens. Renews at half of the lease, so that the driver never waits."""
        sequence.group.service += tokens
        self._policy.charge_tokens(sequence, tokens, self._clock())
        sequence.lease -= tokens
        if sequence.grant:
            sequence.grant = max(sequence.grant - tokens, 0)
            if not sequence.grant:
                self.reschedule()
        if sequence.lease * 2 <= self._lease and sequence.state == RUNNING and not sequence.block_reasons:
            self._renew(sequence)

    def parked(self, sequence: Sequence) -> None:
        """The driver stopped it at the end of its lease, or because it was revoked."""
        if sequence.id not in self._holders or sequence.cancelled:
            return
        if not sequence.block_reasons:
            if sequence.lease <= 0:
                self._renew(sequence)
            return  # a renewal is on its way already
        self._set_state(sequence, PARKED)
        self.free(sequence)

    # ---- inside

    def _grant(self, grant: Grant) -> bool:
        """Give a sequence a slot, or leave it the one it has; False if something holds it after all."""
        sequence = cast("Sequence", grant.job)
        sequence.grant = grant.tokens
        if sequence.id in self._holders:
            self._renew(sequence)
            return True
        if self._is_blocked(sequence):
            self.withdraw(sequence)
            self._set_state(sequence, PARKED)
            return False
        self._holders[sequence.id] = sequence
        self._set_state(sequence, RUNNING)
        if sequence.in_driver:
            self._renew(sequence)
        else:
            sequence.in_driver = True
            sequence.lease = self._span(sequence) if sequence.preemptible else 0
            self._send(sequence.admission())
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take the slot from it at once: the driver hears of this before it hears of who comes next."""
        self._revoke(sequence)
        self._give_up(sequence)
        self._set_state(sequence, QUEUED)
        sequence.preemptions += 1

    def _revoke(self, sequence: Sequence) -> None:
        self._send(protocol.Revoke(sequence.id))
        sequence.lease = sequence.grant = 0

    def _set_state(self, sequence: Sequence, state: str) -> None:
        sequence.state, sequence.since = state, self._clock()

    def _give_up(self, sequence: Sequence) -> None:
        self._holders.pop(sequence.id, None)
        self._leaving.discard(sequence.id)

    def _renew(self, sequence: Sequence) -> None:
        """Fill the lease up, unless the reader is behind: then the driver parks it when the rest is used."""
        if self._is_blocked(sequence) or not sequence.preemptible:
            return
        left, span = max(sequence.lease, 0), self._span(sequence)
        if span > left:
            sequence.lease = span
            self._send(protocol.Renew(sequence.id, span - left))

    def _span(self, sequence: Sequence) -> int:
        """Tokens of a full lease. While others wait it ends with the grant, so that a quantum is exact."""
        return min(self._lease, sequence.grant) if sequence.grant and self._policy.waiting else self._lease

    def _is_blocked(self, sequence: Sequence) -> bool:
        """Whether something holds it; a reader who is behind does, until he has caught up."""
        if sequence.reader_is_behind and READER not in sequence.block_reasons:
            sequence.block_reasons.add(READER)
            stream = sequence.process.stream
            assert stream is not None
            stream.when_drained(lambda: self.on_relief(sequence, READER))
        return bool(sequence.block_reasons)
