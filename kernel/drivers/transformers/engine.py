"""The step loop: obey the kernel, run one packed step over all that may run, report, again.

Run by `__main__` until the kernel says `Stop`. All that the kernel asks for takes effect between steps. An error of one
call ends that call and no other; only leases decide who runs. How calls begin is in `call_lifecycle`.
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
from kernel.drivers.transformers.prefill_budget import PendingPrompt, PrefillBudget
from kernel.drivers.transformers.queries import EmbeddedText, ScoredContinuation
from kernel.drivers.transformers.report import ReportLink
from kernel.drivers.transformers.request import EngineRequest
from kernel.drivers.transformers.sampler import is_greedy, likeliest_of, logprob, sample
from kernel.drivers.transformers.sequence import EngineSequence

Forward = Callable[[list[Span]], ForwardOutput]
Batch = list[tuple[EngineRequest, Span]]


class DriverConnection(ReportLink, Protocol):
    """The link to the kernel; see `kernel.drivers.child.KernelLink`. Callables in the inbox are called."""

    inbox: queue.SimpleQueue[Any]
    prepare: Callable[[ToDriver], Any]


class Engine:
    """Runs what `calls` has let in. `most_rows`: of a step."""

    def __init__(
        self,
        connection: DriverConnection,
        forward: Forward,
        calls: CallLifecycle,
        pace: PrefillBudget,
        most_rows: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._inbox = connection.inbox
        self._forward = forward
        self._calls = calls
        self._pace = pace
        self._most_rows = most_rows
        self._clock = clock
        self._report = calls.report
        self._turn = 0  # of those that run, who is first

    def run(self) -> None:
        """Serve until `Stop`."""
        while self._listen():
            self._step()

    # ---- between steps

    def _listen(self) -> bool:
        """Obey all messages that are there, waiting for one while nothing can run. False after `Stop`."""
        while True:
            self._calls.give_memory()
            idle = not self._calls.ready()
            if idle:
                self._report.flush()
            try:
                message = self._inbox.get(block=False)
            except queue.Empty:
                if not idle:
                    self._report.flush_if_due()
                    return True
                if (usage := self._calls.usage()).waiting:
                    self._report.waiting(usage)
                message = self._inbox.get(block=True)
            if isinstance(message, Stop):
                self._report.flush()
                return False
            if callable(message):
                message()
            else:
                self._calls.obey(message)

    # ---- a step

    def _step(self) -> None:
        started = self._clock()
        batch = self._batch()
        single = sum(span.generated and len(span.tokens) == 1 for _, span in batch)
        rows = sum(len(span.tokens) for _, span in batch) - single
        for part, output in self._run(batch):
            self._take(part, output)
        seconds = self._clock() - started
        self._pace.took(seconds, single, rows)
        if self._pace.prompt_token:
            self._calls.prompts_take(self._pace.prompt_token)
        self._report.step(seconds, self._calls.usage())
        self._report.flush_if_due()

    def _batch(self) -> Batch:
        ready = self._calls.ready()
        if len(ready) > self._most_rows // 2:
            # More than a step holds: each has its turn.
            self._turn = (self._turn + self._most_rows // 2) % len(ready)
            ready = (ready[self._turn :] + ready[: self._turn])[: self._most_rows // 2]
        pending = [PendingPrompt(work.done, work.pending, work.done >= work.prompt) for work in ready]
        counts = self._pace.shares(pending)
        return [(work, work.span(count)) for work, count in zip(ready, counts, strict=True) if count]

    def _run(self, batch: Batch) -> list[tuple[Batch, ForwardOutput]]:
        """Parts of the batch with their output. If the step raises, each runs alone, to fail only those at fault."""
        try:
            return [(batch, self._forward([span for _, span in batch]))]
        except Exception as error:
            if len(batch) > 1:
                return [part for one in batch if _lives(one[0]) for part in self._run([one])]
            self._calls.fail(batch[0][0], error)
            return []

    def _take(self, batch: Batch, output: ForwardOutput) -> None:
        """Hand out what the step computed."""
        hidden = iter(output.hidden)
        best = likeliest_of(output.logits)
        first = 0
        for work, span in batch:
            logits, likeliest = output.logits[first : first + span.logits], best[first : first + span.logits]
            states = next(hidden) if span.hidden else None
            first += span.logits
            if not _lives(work):
                continue
            try:
                self._calls.computed(work, span)
                if isinstance(work, EngineSequence):
                    if likeliest:
                        self._extend(work, logits[0], *likeliest[0])
                else:
                    _take_part(work, span, logits, states)
                    if not work.pending:
                        self._calls.part_done(work)
            except Exception as error:
                self._calls.fail(work, error)

    def _extend(self, sequence: EngineSequence, row: torch.Tensor, maximum: float, likeliest: int) -> None:
        """Choose the next token of `sequence` from its logits, and report what follows from it."""
        if not math.isfinite(maximum):
            raise DriverFailed(f"the model's logits have the maximum {maximum} after {len(sequence.tokens)} tokens")
        choices = row
        if sequence.matcher is not None:
            choices = torch.where(sequence.matcher.allowed().to(row.device), row, -torch.inf)
            ((_, likeliest),) = likeliest_of(choices[None])
        greedy = is_greedy(sequence.sampling)
        token = likeliest if greedy else sample(choices, sequence.sampling, len(sequence.tokens))
        logprobs = [logprob(row, token)] if sequence.sampling.logprobs else []
        text = sequence.accept(token)
        sequence.lease -= 1
        self._report.progress(sequence.id, [token], text, logprobs)
        if sequence.ended:
            self._calls.leave(sequence, Done(sequence.id, sequence.ended))
        elif not sequence.lease:
            self._report.event(Parked(sequence.id))


def _lives(work: EngineRequest) -> bool:
    """False if its call failed in this step with another part of it: then its memory is no longer its own."""
    return work.slab is not None


def _take_part(work: EngineRequest, span: Span, logits: torch.Tensor, states: torch.Tensor | None) -> None:
    if isinstance(work, ScoredContinuation):
        work.take(span.end - span.logits, logits)
    elif isinstance(work, EmbeddedText):
        assert states is not None
        work.take(states)
