"""Starts and ends the calls of the driver: turns the kernel's messages into requests, and removes ended requests.

The engine calls it between steps. Constraints are compiled in worker threads, and `swap_io` reads and writes KV. It
never decides policy: leases come from the kernel, memory from `kv_allocator`.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, cast

from ipc.errors import InvalidConstraint, brief
from kernel.drivers.protocol import (
    Admit,
    Admitted,
    Cancel,
    Done,
    EmbedQuery,
    Ended,
    Parked,
    Renew,
    Resize,
    Restored,
    Revoke,
    ScoreQuery,
    SequenceFailed,
    SwapOut,
)
from kernel.drivers.transformers import constraint
from kernel.drivers.transformers.kv_allocator import KVAllocator
from kernel.drivers.transformers.queries import Embedding, Scoring
from kernel.drivers.transformers.report import BundleReport, Event, wire_error
from kernel.drivers.transformers.request import EngineRequest
from kernel.drivers.transformers.sequence import EngineLimits, EngineSequence, TextCodec
from kernel.drivers.transformers.swap_io import READING, WRITING, SwapIO
from kernel.drivers.transformers.tokenize_ahead import Tokenized

COMPILING = "compiling"  # a value of `EngineRequest.busy`


class CallLifecycle:
    """Holds all requests in the order of admission. Worker threads put callbacks into `inbox`."""

    def __init__(
        self,
        inbox: queue.SimpleQueue[Any],
        report: BundleReport,
        codec: TextCodec,
        allocator: KVAllocator,
        limits: EngineLimits,
        fingerprint: str = "",
    ) -> None:
        self.report = report
        self.allocator = allocator
        self._inbox = inbox
        self._codec = codec
        self._limits = limits
        self._requests: dict[EngineRequest, None] = {}
        self._sequences: dict[int, EngineSequence] = {}
        self._queries: dict[int, Scoring | Embedding] = {}
        self.swap_io = SwapIO(inbox, report, allocator, self, fingerprint)

    # ---- for the engine

    def handle(self, message: Any) -> None:
        """Act on a message of the kernel. A message with texts is wrapped in `Tokenized`."""
        original = message.message if isinstance(message, Tokenized) else message
        try:
            if isinstance(message, Tokenized) and message.error is not None:
                raise message.error
            self._handlers[type(original)](self, message)
        except Exception as error:
            if not hasattr(original, "sequence"):  # `Ended`, `Resize`: they concern the caches only
                kind = type(original).__name__
                print(f"the driver could not act on {kind}, and goes on: {brief(error)}", file=sys.stderr, flush=True)
                return
            self._drop(original.sequence)
            self.report.event(SequenceFailed(original.sequence, wire_error(error)))

    def allocate_memory(self) -> None:
        """Give slabs to the requests that may run and have none, and start to read what they need from disk."""
        without = [request for request in self._requests if request.runs and request.slab is None and not request.busy]
        if not without:
            self.allocator.waiting = 0
            return
        for request in self.allocator.allocate(without, self.ready()):
            if isinstance(request, EngineSequence) and request.swapped:
                self.swap_io.read(request)
        disk_reads, self.allocator.disk_reads = self.allocator.disk_reads, []
        self.swap_io.read_prefixes(disk_reads)

    def ready(self) -> list[EngineRequest]:
        """The requests that can run in the next step, in the order of admission."""
        return [request for request in self._requests if request.slab is not None and request.runs and not request.busy]

    def finish_part(self, request: EngineRequest) -> None:
        """Remove `request`, a part of a query that is computed. After the last part, answer the query."""
        self._forget(request)
        if all(other.id != request.id for other in self._requests):
            self.report.event(self._queries.pop(request.id).answer())

    def is_active(self, sequence: EngineSequence) -> bool:
        """Whether `sequence` is still in the driver: it has not ended, failed or been cancelled."""
        return sequence in self._requests

    def finish(self, sequence: EngineSequence, event: Event) -> None:
        """Remove `sequence`, free its memory, and report `event`."""
        del self._sequences[sequence.id]
        self._forget(sequence)
        self.report.event(event)

    def fail(self, request: EngineRequest, error: Exception) -> None:
        """End the whole call that `request` belongs to with `error`."""
        self._drop(request.id)
        self.report.event(SequenceFailed(request.id, wire_error(error)))

    # ---- messages

    def _admit(self, tokenized: Tokenized) -> None:
        admit, (prompt,) = cast("Admit", tokenized.message), tokenized.ids
        sequence = EngineSequence(admit, prompt, self._codec, self._limits)
        self.allocator.check(sequence)
        wanted = admit.sampling.constraint
        if wanted is not None:
            future = self._codec.grammars.compile(wanted)
            sequence.busy = COMPILING
        self._requests[sequence] = None
        self._sequences[sequence.id] = sequence
        if admit.prompt_ids is None:
            self.report.event(Admitted(sequence.id, prompt))
        if wanted is None:
            self._start(sequence, admit)
            return
        future.add_done_callback(lambda future: self._inbox.put(partial(self._compiled, sequence, admit, future)))
        timer = threading.Timer(
            constraint.COMPILE_TIMEOUT, self._inbox.put, [partial(self._compile_timed_out, sequence)]
        )
        timer.daemon = True
        self._codec.grammars.when_loaded(timer.start)
        future.add_done_callback(lambda _: timer.cancel())

    def _start(self, sequence: EngineSequence, admit: Admit) -> None:
        """Replay the tokens that `sequence` generated before it was admitted. From here on it waits for KV memory."""
        text = "".join([sequence.accept(token) for token in admit.generated])[admit.released :]
        if text:
            self.report.progress(sequence.id, [], text)
        if admit.generated and not admit.swapped:
            self.report.event(Restored(sequence.id, recomputed=True, why="its KV was lost with an earlier driver"))
        sequence.swapped = admit.swapped
        if sequence.ended:
            self.finish(sequence, Done(sequence.id, sequence.ended))
        elif not admit.lease and not sequence.lease:  # with a lease at first, `_revoke` has sent `Parked`
            self.report.event(Parked(sequence.id, sequence.slab is not None))

    def _score(self, tokenized: Tokenized) -> None:
        prompt, *continuations = tokenized.ids
        self._add_query(Scoring(cast("ScoreQuery", tokenized.message), prompt, continuations))

    def _embed(self, tokenized: Tokenized) -> None:
        self._add_query(Embedding(cast("EmbedQuery", tokenized.message), tokenized.ids))

    def _add_query(self, query: Scoring | Embedding) -> None:
        for part in query.parts:
            self._limits.check(part.capacity)
            self.allocator.check(part)
        self._queries[query.parts[0].id] = query
        self._requests.update(dict.fromkeys(query.parts))

    def _renew(self, renew: Renew) -> None:
        sequence = self._sequences.get(renew.sequence)  # None if the sequence ended while the message was under way
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
            self.allocator.cache.process_ended(process)

    def _resize(self, resize: Resize) -> None:
        self.allocator.memory.budget = resize.kv_memory
        self.allocator.cache.make_room(0)

    def _swap_out(self, order: SwapOut) -> None:
        sequence = self._sequences.get(order.sequence)
        if sequence is not None:
            self.swap_io.write(sequence, order)

    # ---- constraints

    def _compiled(self, sequence: EngineSequence, admit: Admit, future: Future[Any]) -> None:
        if sequence not in self._requests:
            return
        sequence.busy = ""
        try:
            sequence.constrain(future.result())
            self._start(sequence, admit)
        except Exception as error:
            self.fail(sequence, error)

    def _compile_timed_out(self, sequence: EngineSequence) -> None:
        if sequence in self._requests and sequence.busy == COMPILING:
            text = f"the constraint was not compiled within {constraint.COMPILE_TIMEOUT} s; simplify it"
            self.fail(sequence, InvalidConstraint(text))

    # ---- ends

    def _drop(self, identity: int) -> bool:
        """Remove all requests of the call `identity`. Returns False if there are none."""
        requests = [request for request in self._requests if request.id == identity]
        self._sequences.pop(identity, None)
        self._queries.pop(identity, None)
        for request in requests:
            self._forget(request)
        return bool(requests)

    def _forget(self, request: EngineRequest) -> None:
        del self._requests[request]
        if request.busy not in (READING, WRITING):  # else `swap_io` frees the memory when its thread is done
            self.allocator.free(request)

    _handlers: dict[type, Callable[[CallLifecycle, Any], None]] = {
        Admit: _admit,
        ScoreQuery: _score,
        EmbedQuery: _embed,
        Renew: _renew,
        Revoke: _revoke,
        Cancel: _cancel,
        SwapOut: _swap_out,
        Ended: _ended,
        Resize: _resize,
    }
