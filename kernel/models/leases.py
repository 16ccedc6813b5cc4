"""The lease table of one model: which sequences hold a slot, and how many tokens each may still make.

Owned by the active sequences of a model, which report to it what the driver did. It carries out the decisions of its
policy, and sends the messages for this to the driver through `send`. It never chooses the sequence that gets a slot.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from kernel.core.event_log import EventLog
from kernel.core.stream import Stream
from kernel.drivers import protocol
from kernel.models.sequence import PARKED, QUEUED, RUNNING, Sequence
from kernel.policy.group import PROMPT_WEIGHT
from kernel.policy.policy import Grant, Policy, hand_over

READER, SUSPENDED, SWAPPING = "reader", "suspended", "swapping"  # the reasons for which a sequence is blocked


class LeaseTable:
    """`count` slots and leases of up to `lease` tokens. The table gives out no slot until `open`.

    A grant is the number of tokens that a sequence may make before the policy decides again. A lease is the number of
    tokens that the driver may make for a sequence before the kernel renews the lease. While other sequences wait, a
    lease is never longer than what is left of the grant. `count` may change at any time; a smaller count takes no slot
    from a sequence that holds one.
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
        self.on_reader_caught_up: Callable[[Sequence, str], None] = self.unblock  # called when a reader has caught up
        self.on_policy_changed: Callable[[str], None] | None = None  # called when the policy `auto` uses another one
        self.on_shed: Callable[[Sequence], None] = self.free  # called when the policy sheds a sequence
        self._reason = policy.reason
        self._open = False
        self._holders: dict[int, Sequence] = {}
        self._releasing: set[int] = set()  # holders that were withdrawn, but that the driver may still run
        self._readers: dict[int, tuple[Stream | EventLog, Callable[[], None]]] = {}  # of sequences blocked by a reader

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
        """The sequences that wait for a slot, the next one first."""
        return cast("list[Sequence]", self._policy.queue())

    @property
    def running(self) -> list[Sequence]:
        """The sequences that hold a slot."""
        return list(self._holders.values())

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._policy

    def switch(self, policy: Policy) -> None:
        """Let `policy` decide from now on. It takes over all sequences, and those on slots keep running."""
        hand_over(self._policy, policy, self._clock())
        self._policy = policy
        self._reason = policy.reason
        self.reschedule()

    def open(self) -> None:
        """The driver is ready: give out the slots."""
        self._open = True
        self.reschedule()

    def close(self) -> None:
        """The driver is gone, and with it every slot and lease."""
        self._open = False
        for sequence in self._holders.values():
            self._policy.leave(sequence, self._clock())
        self._holders.clear()
        self._releasing.clear()

    def preempt_all(self) -> None:
        """Give out no more slots until `open`, and preempt all preemptible sequences."""
        self._open = False
        for sequence in tuple(self._holders.values()):
            if sequence.preemptible and sequence.id not in self._releasing:
                self._policy.leave(sequence, self._clock())
                self._policy.arrive(sequence, self._clock())
                self._preempt(sequence)

    def clear(self) -> None:
        """Give out no more slots until `open`, and forget all sequences, on slots and waiting."""
        self.close()
        for sequence in self.queue:
            self._policy.leave(sequence, self._clock())

    def reschedule(self) -> None:
        """Carry out what the policy decides now."""
        while self._open:
            decision = self._policy.decide(self.count - len(self._releasing), self._clock())
            for sequence in cast("list[Sequence]", decision.preempt):
                self._preempt(sequence)
            if self._policy.reason is not self._reason:
                self._reason = self._policy.reason
                if self.on_policy_changed is not None:
                    self.on_policy_changed(self._reason)
            refused = [grant for grant in decision.run if not self._grant(grant)]
            for sequence in cast("list[Sequence]", decision.shed):
                self.on_shed(sequence)
            if not refused:
                return

    def enqueue(self, sequence: Sequence) -> None:
        """Queue `sequence` for a slot, or mark it as parked if it is blocked."""
        if self._is_blocked(sequence):
            self._policy.leave(sequence, self._clock())
            self._set_state(sequence, PARKED)
            return
        self._set_state(sequence, QUEUED)
        self._policy.arrive(sequence, self._clock())
        self.reschedule()

    def withdraw(self, sequence: Sequence) -> None:
        """Take `sequence` away from the policy.

        If it holds a slot, the slot stays taken until `free` is called, because the driver may still run the sequence.
        """
        self._policy.leave(sequence, self._clock())
        if sequence.id in self._holders:
            self._releasing.add(sequence.id)

    def ended(self, sequence: Sequence) -> None:
        """Wait for the reader of `sequence` no longer: nobody needs its tokens. The stream would hold it otherwise."""
        if (waiting := self._readers.pop(sequence.id, None)) is not None:
            stream, caught_up = waiting
            stream.forget(caught_up)

    def free(self, sequence: Sequence) -> None:
        """Take back the slot of `sequence`, if it has one, and give out what is free."""
        self._policy.leave(sequence, self._clock())
        self._release_slot(sequence)
        self.reschedule()

    def reprioritise(self, sequence: Sequence) -> None:
        """The priority of `sequence` has changed."""
        self._policy.reprioritise(sequence, self._clock())
        self.reschedule()

    def block(self, sequence: Sequence, why: str) -> None:
        """Take `sequence` off its slot or out of the queue, until it is unblocked. Its KV stays in the driver.

        A sequence that cannot be preempted keeps its slot and runs to its end.
        """
        sequence.block_reasons.add(why)
        if sequence.state == RUNNING and sequence.preemptible:
            self._revoke(sequence)
            self.withdraw(sequence)
        elif sequence.state == QUEUED:
            self.withdraw(sequence)
            self._set_state(sequence, PARKED)

    def unblock(self, sequence: Sequence, why: str) -> None:
        """Remove the block reason `why`. If none is left, `sequence` queues for a slot again, in its old place."""
        if why not in sequence.block_reasons:
            return
        sequence.block_reasons.discard(why)
        if sequence.block_reasons or sequence.finished or sequence.cancelled:
            return
        if sequence.id in self._releasing:  # the driver has not answered the `Revoke` yet
            self._release_slot(sequence)
            self.enqueue(sequence)
        elif sequence.id in self._holders:
            self._renew(sequence)
        else:
            self.enqueue(sequence)

    def charge_prompt(self, sequence: Sequence, tokens: int) -> None:
        """The prompt of `sequence` has `tokens` tokens, which the driver prefills."""
        sequence.group.service += PROMPT_WEIGHT * tokens
        self._policy.charge_prompt(sequence, tokens, self._clock())

    def charge_tokens(self, sequence: Sequence, tokens: int) -> None:
        """The driver reported `tokens` new tokens of `sequence`.

        Renews the lease when half of it is used, so that the driver never waits for a renewal.
        """
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
        """The driver stopped `sequence` at the end of its lease, or because the lease was revoked."""
        if sequence.id not in self._holders or sequence.cancelled:
            return
        if not sequence.block_reasons:
            if sequence.lease <= 0:
                self._renew(sequence)
            return  # if the lease is not used up, a renewal is already on its way
        self._set_state(sequence, PARKED)
        self.free(sequence)

    # ---- inside

    def _grant(self, grant: Grant) -> bool:
        """Give a sequence a slot, or a new grant for the slot that it has. Returns False if the sequence is blocked."""
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
            sequence.lease = self._full_lease(sequence) if sequence.preemptible else 0
            self._send(sequence.admission())
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take the slot immediately: the driver receives the `Revoke` before it receives the next `Admit`."""
        self._revoke(sequence)
        self._release_slot(sequence)
        self._set_state(sequence, QUEUED)
        sequence.preemptions += 1

    def _revoke(self, sequence: Sequence) -> None:
        self._send(protocol.Revoke(sequence.id))
        sequence.lease = sequence.grant = 0

    def _set_state(self, sequence: Sequence, state: str) -> None:
        sequence.state, sequence.since = state, self._clock()

    def _release_slot(self, sequence: Sequence) -> None:
        self._holders.pop(sequence.id, None)
        self._releasing.discard(sequence.id)

    def _renew(self, sequence: Sequence) -> None:
        """Fill up the lease, unless the sequence is blocked or a query.

        The driver parks a blocked sequence when the rest of its lease is used.
        """
        if self._is_blocked(sequence) or not sequence.preemptible:
            return
        left, full = max(sequence.lease, 0), self._full_lease(sequence)
        if full > left:
            sequence.lease = full
            self._send(protocol.Renew(sequence.id, full - left))

    def _full_lease(self, sequence: Sequence) -> int:
        """The size of a full lease. While other sequences wait, it is cut to the rest of the grant."""
        return min(self._lease, sequence.grant) if sequence.grant and self._policy.waiting else self._lease

    def _is_blocked(self, sequence: Sequence) -> bool:
        """Whether `sequence` is blocked. If its reader is behind, first blocks it until the reader has caught up."""
        if sequence.reader_is_behind and READER not in sequence.block_reasons:
            sequence.block_reasons.add(READER)
            stream = sequence.process.stream
            assert stream is not None
            caught_up = partial(self._reader_caught_up, sequence)
            self._readers[sequence.id] = stream, caught_up
            stream.when_drained(caught_up)
        return bool(sequence.block_reasons)

    def _reader_caught_up(self, sequence: Sequence) -> None:
        if self._readers.pop(sequence.id, None) is not None:  # else it ended in another callback of the same stream
            self.on_reader_caught_up(sequence, READER)
