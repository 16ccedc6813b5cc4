"""The active sequences of one model, from the call to the last token, across restarts of the driver.

Reports to the lease table and the pager, and charges processes for the tokens that they use. Owned by the model
runtime, which passes on the driver's messages and says when the driver is gone. `ActiveSequences` never starts or stops
a driver.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import islice

from ipc.errors import DeadlineUnreachable, DriverFailed, LimitExceeded, LlmosError, ModelChanged, from_wire
from ipc.messages import Log
from kernel.drivers import protocol
from kernel.models.call_log import CallLog
from kernel.models.footprint import Footprint
from kernel.models.generation import Generation
from kernel.models.leases import SUSPENDED, LeaseTable
from kernel.models.pager import Pager
from kernel.models.query import Answer, Query
from kernel.models.sequence import QUEUED, RUNNING, Sequence
from kernel.models.spec import ModelSpec
from kernel.models.swap import SwapArea
from kernel.models.think_time import ThinkTimes
from kernel.policy.policy import Policy
from kernel.processes.limits import LimitEnforcer

MAX_DEATHS = 3  # driver deaths that a sequence survives while it holds a slot
MAX_COMPARED = 1_000  # sequences whose priorities are compared
RATE_SMOOTHING = 0.9  # weight of the past in the token rate


class ActiveSequences:
    """`sequences` holds, by id, the unfinished sequences and the cancelled ones that the driver still knows.

    `tokens` and `steps` count the tokens that drivers have made so far and the batch steps that this took; `rate` is in
    tokens per second.
    """

    def __init__(
        self,
        model: str,
        spec: ModelSpec,
        policy: Policy,
        limits: LimitEnforcer,
        area: SwapArea,
        finished: CallLog,
        footprint: Footprint,
        clock: Callable[[], float],
        ask: Callable[[protocol.ToDriver], None],
    ) -> None:
        self.sequences: dict[int, Sequence] = {}
        self.leases = LeaseTable(spec.slots, spec.lease, policy, clock, self._send)
        self.pager = Pager(model, spec.max_tokens, area, self.leases, footprint, ask, clock)
        self.think_times = ThinkTimes(clock)
        self.tokens = self.steps = 0
        self.rate = 0.0
        self._identity = ""  # of the model's files, from which the driver has loaded; empty without a driver
        self._model = model
        self._limits = limits
        self._area = area
        self._finished = finished
        self._clock = clock
        self._ask = ask
        self._places: dict[int, int] | None = None  # in this turn of the loop
        self._cancelling: set[int] = set()  # ids of cancelled sequences that the driver still runs

    @property
    def busy(self) -> bool:
        """Whether any sequence runs, waits for a slot, or is being swapped out."""
        return bool(self.leases.used or self.leases.waiting or self.pager.swapping_out)

    @property
    def priority(self) -> int | None:
        """The highest priority of the sequences that run or wait for a slot; None if there are none.

        It looks at `MAX_COMPARED` sequences at most, in the order of their calls.
        """
        if not (self.leases.used or self.leases.waiting):
            return None
        some = islice(self.sequences.values(), MAX_COMPARED)
        return max((one.priority for one in some if one.state in (RUNNING, QUEUED)), default=0)

    @property
    def awaiting_driver(self) -> bool:
        """Whether the driver owes the kernel a message."""
        return bool(self.leases.used or self.pager.swapping_out or self._cancelling)

    def place(self, sequence: Sequence) -> int:
        """The place of `sequence` among those that wait for a slot, from 1; 0 if it does not wait.

        The places are computed once in a turn of the loop, because a listing asks for those of all its rows.
        """
        if self._places is None or sequence.id not in self._places:
            if self._places is None:
                asyncio.get_running_loop().call_soon(self._forget_places)
            self._places = {one.id: place for place, one in enumerate(self.leases.queue, 1)}
        return self._places.get(sequence.id, 0)

    def _forget_places(self) -> None:
        self._places = None

    # ---- adding and ending sequences

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence for a slot."""
        self.sequences[sequence.id] = sequence
        if isinstance(sequence, Generation):
            sequence.submitted = self._clock()
            sequence.expected_think_time = self.think_times.expected(sequence.process.program)
            self._begin_again_if_changed(sequence)
        self.think_times.call_began(sequence.process)
        if sequence.process.suspended or sequence.thread.suspended:
            sequence.block_reasons.add(SUSPENDED)
        self.leases.enqueue(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Stop `sequence`, whose caller no longer waits. It loses its slot after at most one step of the driver."""
        sequence.cancelled = True
        self.leases.ended(sequence)
        self.leases.withdraw(sequence)
        if sequence.in_driver:
            self._cancelling.add(sequence.id)
            self._ask(protocol.Cancel(sequence.id))
        else:
            self._forget(sequence)

    def shed(self, sequence: Sequence) -> None:
        """The policy has shed `sequence`: end it with `DeadlineUnreachable`."""
        waited = self._clock() - sequence.since
        text = f"the call cannot finish before the deadline of its task; it waited {waited:.1f} s for a slot"
        sequence.process.write_log(
            Log(sequence.process.pid, time.time(), "warning", "model call shed", {"model": self._model, "why": text})
        )
        self._abort(sequence, DeadlineUnreachable(text))

    def fail(self, error: LlmosError) -> None:
        """The model cannot run: end all sequences with `error`."""
        self.leases.clear()
        self._cancelling.clear()
        sequences = tuple(self.sequences.values())
        self.sequences.clear()
        for sequence in sequences:
            sequence.in_driver = False
            self.leases.ended(sequence)
            self.pager.forget(sequence)
            if not sequence.cancelled:
                sequence.finish(error)
            self._log_call(sequence)

    # ---- the start and the end of a driver

    def loaded(self, identity: str) -> None:
        """A driver has loaded the model from files with this `identity`, and no sequence has been admitted yet."""
        self._identity = identity
        for sequence in tuple(self.sequences.values()):
            if isinstance(sequence, Generation):
                self._begin_again_if_changed(sequence)

    def _begin_again_if_changed(self, sequence: Generation) -> None:
        """If other files of the model began `sequence`, let it begin again: its tokens are those of another model.

        End it with `ModelChanged` if a client may have seen a part of its text, because the rest would not fit.
        """
        if not self._identity or sequence.identity in ("", self._identity):
            return
        seen, tokens = sequence.shown, len(sequence.ids)
        if seen:
            text = (
                f"the files of model {self._model} changed during this reply, of which a client has seen {seen} "
                "characters; make the call again, and the new files answer"
            )
            self._abort(sequence, ModelChanged(text))
            return
        self.pager.drop_file(sequence)
        sequence.begin_again("the model's files have changed")
        event = "the model's files have changed; the reply begins again"
        fields = {"model": self._model, "tokens": tokens}
        sequence.process.write_log(Log(sequence.process.pid, time.time(), "warning", event, fields))

    def swap_out_all(self) -> None:
        """The driver will be stopped: preempt all generations, and have the driver swap out those that have KV.

        `awaiting_driver` is false when the driver has done so.
        """
        self.leases.preempt_all()
        for sequence in tuple(self.sequences.values()):
            if isinstance(sequence, Generation) and sequence.swappable and sequence.id not in self.pager.swapping_out:
                self.pager.swap_out(sequence)

    def checkpoint_to_disk(self) -> None:
        """The daemon will stop: preempt all generations, and have the driver swap out those of durable calls."""
        self.leases.preempt_all()
        for sequence in tuple(self.sequences.values()):
            if not isinstance(sequence, Generation) or sequence.record is None:
                continue
            if sequence.swappable and sequence.id not in self.pager.swapping_out:
                self.pager.swap_out(sequence)

    def driver_ended(self, how: str) -> int:
        """The driver is gone. `how` says how it died; it is empty if the kernel stopped the driver.

        Queues again the sequences that the driver held, and returns their number.
        """
        on_slot = self.leases.taken
        held = [sequence for sequence in self.sequences.values() if sequence.in_driver]
        self.leases.close()
        self._identity = ""
        self._cancelling.clear()
        self.pager.driver_ended(held)
        for sequence in held:
            sequence.in_driver = False
            sequence.lease = 0
            if sequence.cancelled:
                self._forget(sequence)
            elif not how or self._survives(sequence, how, sequence.id in on_slot):
                self.leases.enqueue(sequence)
        return len(held)

    def _survives(self, sequence: Sequence, how: str, on_slot: bool) -> bool:
        """Whether `sequence` may continue in another driver. Ends it with an error after too many deaths of drivers."""
        sequence.deaths += on_slot
        if sequence.deaths > MAX_DEATHS:
            text = f"the driver of model {self._model} died {sequence.deaths} times while it ran this call ({how})"
            sequence.finish(DriverFailed(text))
            self._forget(sequence)
            return False
        tokens = 0
        if isinstance(sequence, Generation):
            tokens = len(sequence.ids)
            sequence.recomputed = f"the driver died ({how})"
        event = "driver died; the call continues in a new one"
        fields = {"model": self._model, "how": how, "tokens": tokens}
        sequence.process.write_log(Log(sequence.process.pid, time.time(), "warning", event, fields))
        return True

    # ---- messages of the driver

    def handle(self, message: protocol.FromDriver) -> None:
        """Handle a message of the driver about a sequence."""
        match message:
            case protocol.Bundle():
                self._on_bundle(message)
            case protocol.Admitted(sequence=number):
                if isinstance(sequence := self.sequences.get(number), Generation):
                    sequence.prompt_ids, sequence.identity = message.prompt_ids, self._identity
                    self._charge_prompt(sequence, len(message.prompt_ids))
            case protocol.Parked(sequence=number):
                if (parked := self.sequences.get(number)) is not None:
                    if message.held and isinstance(parked, Generation):
                        parked.has_kv = True
                    self.leases.parked(parked)
            case protocol.Done(sequence=number):
                if isinstance(sequence := self.sequences.get(number), Generation):
                    sequence.finish_reason = message.reason
                self._on_finished(number)
            case protocol.SequenceFailed(sequence=number):
                self._on_finished(number, from_wire(message.error))
            case protocol.Scored(sequence=number) | protocol.Embedded(sequence=number):
                self._on_answer(number, message)
            case protocol.SwappedOut(sequence=number):
                self._on_swapped_out(number, message)
            case protocol.Restored(sequence=number):
                if isinstance(sequence := self.sequences.get(number), Generation):
                    self.pager.restored(sequence, message)

    def _on_bundle(self, bundle: protocol.Bundle) -> None:
        made = 0
        for progress in bundle.progress:
            sequence = self.sequences.get(progress.sequence)
            if not isinstance(sequence, Generation) or sequence.cancelled:
                continue
            made += len(progress.ids)
            if sequence.first is None and progress.ids:
                sequence.first = self._clock()
            try:
                sequence.extend(progress)
            except DriverFailed as error:
                self._abort(sequence, error)
                continue
            sequence.process.generated_tokens += len(progress.ids)
            sequence.switch_cost = self.pager.switch_cost(sequence, self.rate)
            self.leases.charge_tokens(sequence, len(progress.ids))
            self._charge(sequence, len(progress.ids))
        self.tokens += made
        self.steps += bundle.steps
        if bundle.seconds > 0:
            rate = made / bundle.seconds
            self.rate = RATE_SMOOTHING * self.rate + (1 - RATE_SMOOTHING) * rate if self.rate else rate
        self.pager.update(bundle.kv, bundle.steps, made > 0, self.sequences.values())
        self.leases.reschedule()

    def _on_answer(self, number: int, answer: Answer) -> None:
        query = self.sequences.get(number)
        if not isinstance(query, Query):
            return
        try:
            self._charge_prompt(query, query.accept(answer))
        except DriverFailed as error:
            self._on_finished(number, error)
        else:
            self._on_finished(number)

    def _on_swapped_out(self, number: int, message: protocol.SwappedOut) -> None:
        sequence = self.sequences.get(number)
        if not isinstance(sequence, Generation):
            self._area.remove(number)
            return
        self.pager.swapped_out(sequence, message)
        if sequence.cancelled and not sequence.in_driver:
            self._forget(sequence)

    def _charge_prompt(self, sequence: Sequence, tokens: int) -> None:
        sequence.process.prompt_tokens += tokens
        self.leases.charge_prompt(sequence, tokens)
        self._charge(sequence, tokens)

    def tokens_left(self, sequence: Sequence) -> int | None:
        """The tokens that the process of `sequence` may still use; None without a limit."""
        return self._limits.tokens_left(sequence.process)

    def _charge(self, sequence: Sequence, tokens: int) -> None:
        """Charge the process for `tokens` used. If this exceeds a limit, end the sequence with an error."""
        try:
            self._limits.tokens_used(sequence.process, tokens)
        except LimitExceeded as error:
            self._abort(sequence, error)

    def _abort(self, sequence: Sequence, error: LlmosError) -> None:
        """End a sequence, which still runs or waits, with `error`."""
        self.cancel(sequence)
        sequence.finish(error)

    def _on_finished(self, number: int, error: LlmosError | None = None) -> None:
        sequence = self.sequences.get(number)
        if sequence is None:
            return
        sequence.in_driver = False
        if sequence.state == RUNNING:
            self.pager.add_slot_time(self._clock() - sequence.since)
        if not sequence.cancelled:
            sequence.finish(error)
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        if self.sequences.pop(sequence.id, None) is not None:
            self._log_call(sequence)
            self.think_times.call_ended(sequence.process)
        self._cancelling.discard(sequence.id)
        self.pager.forget(sequence)
        self.leases.ended(sequence)
        self.leases.free(sequence)

    def _log_call(self, sequence: Sequence) -> None:
        """Add a generation that has ended to the call log."""
        if isinstance(sequence, Generation):
            self._finished.add(sequence, self._clock())

    def _send(self, message: protocol.ToDriver) -> None:
        """Send a message of the lease table to the driver."""
        if isinstance(message, protocol.Admit):
            generation = self.sequences[message.sequence]
            if isinstance(generation, Generation) and generation.started is None:
                generation.started = self._clock()
        self._ask(message)
