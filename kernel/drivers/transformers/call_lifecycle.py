"""Starts and ends the calls of the driver: turns the kernel's messages into requests, and removes ended requests.

The engine calls it between steps. Constraints are compiled in worker threads, and `swap_io` reads and writes KV. It
never decides policy: leases come from the kernel, memory from `kv_allocator`.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, cast

from ipc.errors import DriverFailed, InvalidConstraint, brief
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
    SwappedOut,
)
from kernel.drivers.transformers import constraint
from kernel.drivers.transformers.kv_allocator import KVAllocator
from kernel.drivers.transformers.queries import Embedding, QueryParts, Scoring
from kernel.drivers.transformers.report import BundleReport, Event, wire_error
from kernel.drivers.transformers.request import EngineRequest
from kernel.drivers.transformers.sequence import EngineLimits, EngineSequence, TextCodec
from kernel.drivers.transformers.swap_io import READING, WRITING, SwapIO
from kernel.drivers.transformers.tokenize_ahead import TokenizeAhead, Tokenized, TokenizeJob

COMPILING, REPLAYING = "compiling", "replaying"  # values of `EngineRequest.busy`
REPLAYED_AT_ONCE = 200  # tokens; more take too long between two steps


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
        tokenizer: TokenizeAhead | None = None,
    ) -> None:
        self.report = report
        self.allocator = allocator
        self._inbox = inbox
        self._codec = codec
        self._limits = limits
        self._requests: dict[EngineRequest, None] = {}
        self._sequences: dict[int, EngineSequence] = {}
        self._queries: dict[int, QueryParts[Any]] = {}
        self._tokenizer = tokenizer
        self._replays = ThreadPoolExecutor(1, "replay")
        self._tokenizing: dict[int, TokenizeJob] = {}  # calls whose texts are being tokenized
        self.swap_io = SwapIO(inbox, report, allocator, self, fingerprint)

    # ---- for the engine

    def handle(self, message: Any) -> None:
        """Act on a message of the kernel. A message with texts is in a `TokenizeJob`, or in a `Tokenized`."""
        if isinstance(message, TokenizeJob):
            job = message
            if job.settled:
                return
            if job.result is None:
                self._tokenizing[job.message.sequence] = job
                return
            job.settled = True
            self._tokenizing.pop(job.message.sequence, None)
            message = job.result
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

    def works(self) -> bool:
        """Whether threads are at work for calls, while the engine may have nothing to do."""
        if self._tokenizer is not None and self._tokenizer.works():
            return True
        if any(request.busy in (COMPILING, REPLAYING) for request in self._requests):
            return True
        return self.swap_io.works(self.allocator.memory.size(self._limits.context))

    def fail_hanging(self) -> None:
        """Fail the calls whose texts hang in the tokenizer."""
        if self._tokenizer is not None:
            self._tokenizer.fail_hanging()

    def finish_part(self, request: EngineRequest) -> None:
        """Remove `request`, a part of a query that is computed. After the last part, answer the query."""
        query = self._queries[request.id]
        query.finish_part(request)
        self._forget(request)
        self._requests.update(dict.fromkeys(query.start_parts()))
        if query.done:
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
        self.allocator.check(sequence.capacity)
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
        """Replay the tokens that `sequence` generated before it was admitted; many of them in a thread."""
        if len(admit.generated) <= REPLAYED_AT_ONCE:
            self._started(sequence, admit, _replay(sequence, admit))
            return
        sequence.busy = REPLAYING
        future = self._replays.submit(_replay, sequence, admit)
        future.add_done_callback(lambda future: self._inbox.put(partial(self._replayed, sequence, admit, future)))

    def _replayed(self, sequence: EngineSequence, admit: Admit, future: Future[str]) -> None:
        if sequence not in self._requests:
            return
        sequence.busy = ""
        try:
            self._started(sequence, admit, future.result())
        except Exception as error:
            self.fail(sequence, error)

    def _started(self, sequence: EngineSequence, admit: Admit, text: str) -> None:
        """The tokens of `sequence` are replayed and release `text`. From here on it waits for KV memory."""
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

    def _add_query(self, query: QueryParts[Any]) -> None:
        largest = max(query.capacities)
        self._limits.check(largest)
        self.allocator.check(largest)
        self._queries[query.id] = query
        self._requests.update(dict.fromkeys(query.start_parts()))

    def _renew(self, renew: Renew) -> None:
        sequence = self._sequences.get(renew.sequence)  # None if the sequence ended while the message was under way
        if sequence is not None:
            sequence.lease += renew.tokens
        elif (admit := self._admit_of(renew.sequence)) is not None:
            admit.lease += renew.tokens

    def _revoke(self, revoke: Revoke) -> None:
        sequence = self._sequences.get(revoke.sequence)
        if sequence is not None and sequence.lease:
            sequence.lease = 0
            self.report.event(Parked(sequence.id, sequence.slab is not None))
        elif (admit := self._admit_of(revoke.sequence)) is not None and admit.lease:
            admit.lease = 0
            self.report.event(Parked(revoke.sequence, held=False))

    def _admit_of(self, identity: int) -> Admit | None:
        """The message of a generation whose prompt is being tokenized."""
        job = self._tokenizing.get(identity)
        return job.message if job is not None and isinstance(job.message, Admit) else None

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
        elif order.sequence in self._tokenizing:
            error = DriverFailed(f"sequence {order.sequence} is not parked (its prompt is being tokenized)")
            self.report.event(SwappedOut(order.sequence, 0, 0.0, wire_error(error)))

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
        """Remove all that there is of the call `identity`. Returns False if there is nothing."""
        job = self._tokenizing.pop(identity, None)
        if job is not None and self._tokenizer is not None:
            self._tokenizer.withdraw(job)
        requests = [request for request in self._requests if request.id == identity]
        self._sequences.pop(identity, None)
        self._queries.pop(identity, None)
        for request in requests:
            self._forget(request)
        return bool(requests) or job is not None

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


def _replay(sequence: EngineSequence, admit: Admit) -> str:
    """The text that the generated tokens of `admit` release, without the part that the kernel has."""
    return "".join([sequence.accept(token) for token in admit.generated])[admit.released :]
