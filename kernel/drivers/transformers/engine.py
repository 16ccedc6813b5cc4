"""The step loop: handle the kernel's messages, run one packed step over all ready requests, report, repeat.

`__main__` runs it until the kernel sends `Stop`. Messages take effect between steps. An error in one call ends that
call and no other. The engine never decides which requests run: the kernel does, by leases. `call_lifecycle` starts and
ends the requests.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from ipc.errors import DriverFailed
from kernel.drivers.protocol import Done, Parked, Stop, ToDriver
from kernel.drivers.transformers.attention import Span
from kernel.drivers.transformers.call_lifecycle import CallLifecycle
from kernel.drivers.transformers.forward import ForwardOutput
from kernel.drivers.transformers.prefill_budget import PendingTokens, PrefillBudget
from kernel.drivers.transformers.queries import EmbeddedText, ScoredContinuation
from kernel.drivers.transformers.report import ReportLink
from kernel.drivers.transformers.request import EngineRequest
from kernel.drivers.transformers.sampler import is_greedy, likeliest_of, logprob, sample
from kernel.drivers.transformers.sequence import EngineSequence

# Seconds. The kernel takes a longer silence for a lack of KV memory (`STALL` in `kernel/models/runtime.py`).
HEARTBEAT = 0.5

Forward = Callable[[list[Span]], ForwardOutput]
Batch = list[tuple[EngineRequest, Span]]


class DriverConnection(ReportLink, Protocol):
    """The link to the kernel; see `kernel.drivers.child.KernelLink`. The engine also calls callbacks in the inbox."""

    inbox: queue.SimpleQueue[Any]
    prepare: Callable[[ToDriver], Any]


class Engine:
    """Runs the requests that `calls` holds. A step has at most `max_rows` rows, one for each token."""

    def __init__(
        self,
        connection: DriverConnection,
        forward: Forward,
        calls: CallLifecycle,
        prefill_budget: PrefillBudget,
        max_rows: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._inbox = connection.inbox
        self._forward = forward
        self._calls = calls
        self._prefill_budget = prefill_budget
        self._max_rows = max_rows
        self._clock = clock
        self._report = calls.report
        self._allocator = calls.allocator
        self._turn = 0  # index of the request that the last step began with, if it could not hold all

    def run(self) -> None:
        """Serve until `Stop`."""
        while self._handle_messages():
            self._step()

    # ---- between steps

    def _handle_messages(self) -> bool:
        """Handle all messages in the inbox; wait for messages while no request can run. Returns False after `Stop`."""
        while True:
            self._calls.allocate_memory()
            idle = not self._calls.ready()
            if idle:
                self._report.flush()
            try:
                message = self._inbox.get(block=False)
            except queue.Empty:
                self._calls.fail_hanging()
                if not idle:
                    self._report.flush_if_due()
                    return True
                if (usage := self._allocator.usage()).waiting:
                    self._report.waiting(usage)
                message = self._next_message()
            if isinstance(message, Stop):
                self._report.flush()
                return False
            if callable(message):
                message()
            else:
                self._calls.handle(message)

    def _next_message(self) -> Any:
        """Wait for a message. Let the kernel know every `HEARTBEAT` seconds that threads are at work."""
        while self._calls.works():
            try:
                return self._inbox.get(block=True, timeout=HEARTBEAT)
            except queue.Empty:
                self._calls.fail_hanging()
                if (usage := self._allocator.usage()).waiting:
                    self._report.waiting(usage)
                else:
                    self._report.working()
        return self._inbox.get(block=True)

    # ---- a step

    def _step(self) -> None:
        started = self._clock()
        batch = self._batch()
        decoding = sum(span.generated and len(span.tokens) == 1 for _, span in batch)
        rows = sum(len(span.tokens) for _, span in batch) - decoding
        for part, output in self._run(batch):
            self._postprocess(part, output)
        seconds = self._clock() - started
        self._prefill_budget.record_step(seconds, decoding, rows)
        if self._prefill_budget.prompt_token_seconds:
            self._allocator.cache.rates.token = self._prefill_budget.prompt_token_seconds
        self._report.step(seconds, self._allocator.usage())
        self._report.flush_if_due()

    def _batch(self) -> Batch:
        ready = self._calls.ready()
        if len(ready) > self._max_rows // 2:
            # A step cannot hold all requests: they take turns.
            self._turn = (self._turn + self._max_rows // 2) % len(ready)
            ready = (ready[self._turn :] + ready[: self._turn])[: self._max_rows // 2]
        pending = [PendingTokens(request.done, request.pending, request.done >= request.prompt) for request in ready]
        counts = self._prefill_budget.shares(pending)
        return [(request, request.span(count)) for request, count in zip(ready, counts, strict=True) if count]

    def _run(self, batch: Batch) -> list[tuple[Batch, ForwardOutput]]:
        """Run the step. Returns the batch, or the parts of it that ran, with their output.

        If the step raises, run each request alone, so that only the requests that cause the error fail.
        """
        try:
            return [(batch, self._forward([span for _, span in batch]))]
        except Exception as error:
            if len(batch) > 1:
                return [part for single in batch if _has_memory(single[0]) for part in self._run([single])]
            self._calls.fail(batch[0][0], error)
            return []

    def _postprocess(self, batch: Batch, output: ForwardOutput) -> None:
        """Give each request in `batch` its part of `output`."""
        hidden = iter(output.hidden)
        best = likeliest_of(output.logits)
        first = 0
        for request, span in batch:
            logits, likeliest = output.logits[first : first + span.logits], best[first : first + span.logits]
            states = next(hidden) if span.hidden else None
            first += span.logits
            if not _has_memory(request):
                continue
            try:
                self._allocator.computed(request, span.start)
                if isinstance(request, EngineSequence):
                    if likeliest:
                        self._extend(request, logits[0], *likeliest[0])
                else:
                    _add_to_query(request, span, logits, states)
                    if not request.pending:
                        self._calls.finish_part(request)
            except Exception as error:
                self._calls.fail(request, error)

    def _extend(self, sequence: EngineSequence, row: torch.Tensor, maximum: float, likeliest: int) -> None:
        """Choose the next token of `sequence` from its logits, `row`, and report it; then finish or park it if due."""
        if not math.isfinite(maximum):
            count = len(sequence.tokens)
            raise DriverFailed(f"the model's logits are not finite: their maximum is {maximum} after {count} tokens")
        choices = row
        if sequence.matcher is not None:
            choices = torch.where(sequence.matcher.allowed().to(row.device), row, -torch.inf)
            ((_, likeliest),) = likeliest_of(choices[None])
        greedy = is_greedy(sequence.sampling)
        token = likeliest if greedy else sample(choices[: sequence.sampled], sequence.sampling, len(sequence.tokens))
        logprobs = [logprob(row, token)] if sequence.sampling.logprobs else []
        text = sequence.accept(token)
        sequence.lease -= 1
        self._report.progress(sequence.id, [token], text, logprobs)
        if sequence.ended:
            self._calls.finish(sequence, Done(sequence.id, sequence.ended))
        elif not sequence.lease:
            self._report.event(Parked(sequence.id))


def _has_memory(request: EngineRequest) -> bool:
    """Whether `request` still owns its slab. It has lost the slab if another part of its call failed in this step."""
    return request.slab is not None


def _add_to_query(request: EngineRequest, span: Span, logits: torch.Tensor, states: torch.Tensor | None) -> None:
    if isinstance(request, ScoredContinuation):
        request.add_logits(span.end - span.logits, logits)
    elif isinstance(request, EmbeddedText):
        assert states is not None
        request.add_states(states)
