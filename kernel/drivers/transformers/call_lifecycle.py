"""How calls begin and end in the driver: from the kernel's message to work that may run, and out again.

Called by the engine between steps. It obeys the kernel's messages, and has constraints compiled in worker threads, and
states read and written (`swap_io`). It decides no policy: leases come from the kernel, memory from `kv_allocator`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, cast

from ipc.errors import InvalidConstraint
from kernel.drivers.protocol import (
    Admit,
    Admitted,
    Cancel,
    Done,
    Embed,
    Ended,
    KVUsage,
    Parked,
    Renew,
    Resize,
    Restored,
    Revoke,
    Score,
    SequenceFailed,
    SwapOut,
)
from kernel.drivers.transformers import constraint
from kernel.drivers.transformers.attention import Span
from kernel.drivers.transformers.kv_allocator import KVAllocator
from kernel.drivers.transformers.queries import Embedding, Scoring
from kernel.drivers.transformers.report import BundleReport, Event, named
from kernel.drivers.transformers.request import EngineRequest
from kernel.drivers.transformers.sequence import EngineLimits, EngineSequence, TextCodec
from kernel.drivers.transformers.swap_io import READING, WRITING, SwapIO
from kernel.drivers.transformers.tokenize_ahead import Tokenized

COMPILING = "compiling"  # what a sequence is busy with


class CallLifecycle:
    """Holds all works, in the order of their admission. `inbox` calls back what worker threads have done."""

    def __init__(
        self,
        inbox: queue.SimpleQueue[Any],
        report: BundleReport,
        codec: TextCodec,
        placement: KVAllocator,
        limits: EngineLimits,
        fingerprint: str = "",
    ) -> None:
        self.report = report
        self._inbox = inbox
        self._codec = codec
        self._placement = placement
        self._limits = limits
        self._works: dict[EngineRequest, None] = {}
        self._sequences: dict[int, EngineSequence] = {}
        self._requests: dict[int, Scoring | Embedding] = {}
        self.states = SwapIO(inbox, report, placement, self, fingerprint)

    # ---- for the engine

    def obey(self, message: Any) -> None:
        """Do what the kernel asks. What has texts comes `Tokenized`."""
        asked = message.message if isinstance(message, Tokenized) else message
        try:
            if isinstance(message, Tokenized) and message.error is not None:
                raise message.error
            self._handlers[type(asked)](self, message)
        except Exception as error:
            self._drop(asked.sequence)
            self.report.event(SequenceFailed(asked.sequence, named(error)))

    def give_memory(self) -> None:
        """Place the works that may run and have no memory yet."""
        without = [work for work in self._works if work.runs and work.slab is None and not work.busy]
        if not without:
            self._placement.waiting = 0
            return
        for work in self._placement.give(without, self.ready()):
            if isinstance(work, EngineSequence) and work.swapped:
                self.states.read(work)
        fetches, self._placement.fetches = self._placement.fetches, []
        self.states.fetch(fetches)

    def ready(self) -> list[EngineRequest]:
        """The works that can run now."""
        return [work for work in self._works if work.slab is not None and work.runs and not work.busy]

    def prompts_take(self, seconds: float) -> None:
        """What a token of a prompt takes, of late."""
        self._placement.cache.rates.token = seconds

    def computed(self, work: EngineRequest, span: Span) -> None:
        """A step has computed `span` of `work`."""
        self._placement.computed(work, span.start)

    def part_done(self, work: EngineRequest) -> None:
        """A part of a call is through; with the last one the call is answered."""
        self._forget(work)
        if all(other.id != work.id for other in self._works):
            self.report.event(self._requests.pop(work.id).answer())

    def holds(self, sequence: EngineSequence) -> bool:
        """Whether its call still goes on."""
        return sequence in self._works

    def leave(self, sequence: EngineSequence, event: Event) -> None:
        """Forget `sequence`, free all it holds, and say so."""
        del self._sequences[sequence.id]
        self._forget(sequence)
        self.report.event(event)

    def fail(self, work: EngineRequest, error: Exception) -> None:
        """End the call of `work` with `error`."""
        self._drop(work.id)
        self.report.event(SequenceFailed(work.id, named(error)))

    def usage(self) -> KVUsage:
        place = self._placement
        return KVUsage(
            place.memory.used,
            place.memory.cached,
            place.asked,
            place.hit,
            place.cache.evicted,
            place.waiting,
            place.cache.spill.used,
            place.cache.reread,
        )

    # ---- messages

    def _admit(self, said: Tokenized) -> None:
        admit, (prompt,) = cast("Admit", said.message), said.ids
        sequence = EngineSequence(admit, prompt, self._codec, self._limits)
        self._placement.check(sequence)
        held = admit.sampling.constraint
        if held is not None:
            future = self._codec.grammars.compile(held)
            sequence.busy = COMPILING
        self._works[sequence] = None
        self._sequences[sequence.id] = sequence
        if admit.prompt_ids is None:
            self.report.event(Admitted(sequence.id, prompt))
        if held is None:
            self._begin(sequence, admit)
            return
        future.add_done_callback(lambda future: self._inbox.put(partial(self._compiled, sequence, admit, future)))
        alarm = threading.Timer(constraint.SECONDS, self._inbox.put, [partial(self._too_slow, sequence)])
        alarm.daemon = True
        alarm.start()
        future.add_done_callback(lambda _: alarm.cancel())

    def _begin(self, sequence: EngineSequence, admit: Admit) -> None:
        """Take up where an earlier incarnation stopped, and let the sequence wait for memory."""
        text = "".join([sequence.accept(token) for token in admit.generated])[admit.released :]
        if text:
            self.report.progress(sequence.id, [], text)
        if admit.generated and not admit.swapped:
            self.report.event(Restored(sequence.id, recomputed=True, why="its state went with another driver"))
        sequence.swapped = admit.swapped
        if sequence.ended:
            self.leave(sequence, Done(sequence.id, sequence.ended))
        elif not admit.lease and not sequence.lease:  # else it was told when it was revoked
            self.report.event(Parked(sequence.id, sequence.slab is not None))

    def _score(self, said: Tokenized) -> None:
        prompt, *continuations = said.ids
        self._take_request(Scoring(cast("Score", said.message), prompt, continuations))

    def _embed(self, said: Tokenized) -> None:
        self._take_request(Embedding(cast("Embed", said.message), said.ids))

    def _take_request(self, request: Scoring | Embedding) -> None:
        for part in request.parts:
            self._limits.check(part.capacity)
            self._placement.check(part)
        self._requests[request.parts[0].id] = request
        self._works.update(dict.fromkeys(request.parts))

    def _renew(self, renew: Renew) -> None:
        sequence = self._sequences.get(renew.sequence)  # if it ended while the message was on its way, the kernel knows
        if sequence is not None:
            sequence.lease += renew.tokens

    def _revoke(self, revoke: Revoke) -> None:
        sequence = self._sequences.get(revoke.sequence)
        if sequence is not None and sequence.lease:
            sequence.lease = 0
            self.report.event(Parked(sequence.id, sequence.slab is not None))

    def _cancel(self, cancel: Cancel) -> None:
        if self._drop(cancel.sequence):
            self.report.event(Done(cancel.sequence, "cancelled"))

    def _ended(self, ended: Ended) -> None:
        for process in ended.processes:
            self._placement.cache.ended(process)

    def _resize(self, resize: Resize) -> None:
        self._placement.memory.budget = resize.kv_memory
        self._placement.cache.make_room(0)

    def _swap_out(self, order: SwapOut) -> None:
        sequence = self._sequences.get(order.sequence)
        if sequence is not None:
            self.states.write(sequence, order)

    # ---- constraints

    def _compiled(self, sequence: EngineSequence, admit: Admit, future: Future[Any]) -> None:
        if sequence not in self._works:
            return
        sequence.busy = ""
        try:
            sequence.matcher = future.result()
            self._begin(sequence, admit)
        except Exception as error:
            self.fail(sequence, error)

    def _too_slow(self, sequence: EngineSequence) -> None:
        if sequence in self._works and sequence.busy == COMPILING:
            text = f"its constraint was not compiled within {constraint.SECONDS} s; make it simpler"
            self.fail(sequence, InvalidConstraint(text))

    # ---- ends

    def _drop(self, identity: int) -> bool:
        """Forget all works of a call; whether there were any."""
        works = [work for work in self._works if work.id == identity]
        self._sequences.pop(identity, None)
        self._requests.pop(identity, None)
        for work in works:
            self._forget(work)
        return bool(works)

    def _forget(self, work: EngineRequest) -> None:
        del self._works[work]
        if work.busy not in (READING, WRITING):  # else the thread still has its memory; it is freed when that is done
            self._placement.free(work)

    _handlers: dict[type, Callable[[CallLifecycle, Any], None]] = {
        Admit: _admit,
        Score: _score,
        Embed: _embed,
        Renew: _renew,
        Revoke: _revoke,
        Cancel: _cancel,
        SwapOut: _swap_out,
        Ended: _ended,
        Resize: _resize,
    }
