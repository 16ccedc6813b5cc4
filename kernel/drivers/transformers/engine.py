"""The step loop: obey the kernel, run one packed step over all leased sequences, report, again.

Run by `__main__` until the kernel says `Stop`. All that the kernel asks for takes effect between steps. An error of one
sequence ends that sequence and no other; only leases decide who runs.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable
from typing import Protocol

import torch

from ipc.errors import DriverFailed, ErrorInfo, LimitExceeded, LlmosError, to_wire
from kernel.drivers.protocol import Admit, Admitted, Cancel, Done, Failed, Parked, Renew, Revoke, Stop, ToDriver
from kernel.drivers.transformers.attention import Span
from kernel.drivers.transformers.chunks import chunks
from kernel.drivers.transformers.kv import KVMemory
from kernel.drivers.transformers.report import Event, Link, Report
from kernel.drivers.transformers.sampler import is_greedy, sample
from kernel.drivers.transformers.sequence import Codec, Limits, Sequence

Forward = Callable[[list[Span]], torch.Tensor]
Batch = list[tuple[Sequence, Span]]


class Connection(Link, Protocol):
    """The link to the kernel; see `kernel.drivers.child.KernelLink`."""

    inbox: queue.SimpleQueue[ToDriver]


class Engine:
    """Holds the sequences, by id and in the order of their admission.

    A sequence with a lease but no memory yet waits for it, first come first served; one without a lease is parked, and
    keeps its memory. `prefill_tokens` bounds how many tokens of prompts one step takes.
    """

    def __init__(
        self,
        connection: Connection,
        forward: Forward,
        codec: Codec,
        memory: KVMemory,
        limits: Limits,
        prefill_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._inbox = connection.inbox
        self._forward = forward
        self._codec = codec
        self._memory = memory
        self._limits = limits
        self._prefill_tokens = prefill_tokens
        self._clock = clock
        self._report = Report(connection, clock)
        self._sequences: dict[int, Sequence] = {}

    def run(self) -> None:
        """Serve until `Stop`."""
        while self._listen():
            self._step()

    # ---- between steps

    def _listen(self) -> bool:
        """Obey all messages that are there, waiting for one while nothing can run. False after `Stop`."""
        while True:
            self._reserve()
            idle = not self._ready()
            if idle:
                self._report.flush()
            try:
                message = self._inbox.get(block=idle)
            except queue.Empty:
                self._report.flush_if_due()
                return True
            if isinstance(message, Stop):
                self._report.flush()
                return False
            self._obey(message)

    def _obey(self, message: ToDriver) -> None:
        if isinstance(message, Admit):
            self._admit(message)
        elif isinstance(message, Renew | Revoke | Cancel):
            sequence = self._sequences.get(message.sequence)
            if sequence is None:
                return  # it ended while the message was on its way; the kernel was told
            if isinstance(message, Renew):
                sequence.lease += message.tokens
            elif isinstance(message, Cancel):
                self._leave(sequence, Done(sequence.id, "cancelled"))
            elif sequence.lease:
                sequence.lease = 0
                self._report.event(Parked(sequence.id))

    def _admit(self, admit: Admit) -> None:
        try:
            prompt = self._codec.encode(admit.prompt) if admit.prompt_ids is None else admit.prompt_ids
            sequence = Sequence(admit.sequence, prompt, admit.sampling, admit.lease, self._codec, self._limits)
            self._check_memory(sequence)
            text = "".join([sequence.accept(token) for token in admit.generated])[admit.released :]
        except Exception as error:
            self._report.event(Failed(admit.sequence, _named(error)))
            return
        self._sequences[sequence.id] = sequence
        if admit.prompt_ids is None:
            self._report.event(Admitted(sequence.id, prompt))
        if text:
            self._report.progress(sequence.id, [], text)
        if sequence.ended:
            self._leave(sequence, Done(sequence.id, sequence.ended))
        elif not sequence.lease:
            self._report.event(Parked(sequence.id))

    def _check_memory(self, sequence: Sequence) -> None:
        size, budget = self._memory.size(sequence.capacity), self._memory.budget
        if size > budget:
            raise LimitExceeded(
                f"{sequence.capacity} tokens need {size} bytes of keys and values, the model has {budget} in all; "
                f"lower max_tokens, shorten the prompt or raise the option kv_memory",
                bytes=size,
                kv_memory=budget,
            )

    def _reserve(self) -> None:
        """Give memory to those that wait for it, in their order, as far as it goes."""
        for sequence in list(self._sequences.values()):
            if sequence.lease and sequence.slab is None:
                if not self._memory.fits(sequence.capacity):
                    return
                try:
                    sequence.slab = self._memory.allocate(sequence.capacity)
                except Exception as error:
                    self._fail(sequence, error)

    def _ready(self) -> list[Sequence]:
        return [sequence for sequence in self._sequences.values() if sequence.lease and sequence.slab]

    # ---- a step

    def _step(self) -> None:
        started = self._clock()
        for sequences, logits in self._run(self._batch()):
            best = logits.max(dim=-1)
            rows = zip(sequences, logits, best.values.tolist(), best.indices.tolist(), strict=True)
            for sequence, row, maximum, likeliest in rows:
                self._extend(sequence, row, maximum, likeliest)
        self._report.step(self._clock() - started)
        self._report.flush_if_due()

    def _batch(self) -> Batch:
        ready = self._ready()
        counts = chunks([sequence.pending for sequence in ready], self._prefill_tokens)
        batch: Batch = []
        for sequence, count in zip(ready, counts, strict=True):
            if sequence.slab and count:
                start = sequence.slab.length
                tokens = sequence.tokens[start : start + count]
                batch.append((sequence, Span(sequence.slab, tokens, last=count == sequence.pending)))
        return batch

    def _run(self, batch: Batch) -> list[tuple[list[Sequence], torch.Tensor]]:
        """Groups of sequences with their logits. If the step raises, each runs alone, to fail only those at fault."""
        try:
            logits = self._forward([span for _, span in batch])
        except Exception as error:
            if len(batch) > 1:
                return [group for one in batch for group in self._run([one])]
            self._fail(batch[0][0], error)
            return []
        return [([sequence for sequence, span in batch if span.last], logits)]

    def _extend(self, sequence: Sequence, row: torch.Tensor, maximum: float, likeliest: int) -> None:
        """Choose the next token of `sequence` from its logits, and report what follows from it."""
        try:
            if not math.isfinite(maximum):
                raise DriverFailed(f"the model's logits have the maximum {maximum} after {len(sequence.tokens)} tokens")
            greedy = is_greedy(sequence.sampling)
            token = likeliest if greedy else sample(row, sequence.sampling, len(sequence.tokens))
            text = sequence.accept(token)
        except Exception as error:
            self._fail(sequence, error)
            return
        sequence.lease -= 1
        self._report.progress(sequence.id, [token], text)
        if sequence.ended:
            self._leave(sequence, Done(sequence.id, sequence.ended))
        elif not sequence.lease:
            self._report.event(Parked(sequence.id))

    # ---- ends

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        self._leave(sequence, Failed(sequence.id, _named(error)))

    def _leave(self, sequence: Sequence, event: Event) -> None:
        """Forget `sequence` and free all it holds."""
        del self._sequences[sequence.id]
        if sequence.slab:
            self._memory.free(sequence.slab)
        self._report.event(event)


def _named(error: Exception) -> ErrorInfo:
    """The wire form of `error`; one that llmosd has no name for is the driver's fault."""
    if not isinstance(error, LlmosError):
        error = DriverFailed(f"{type(error).__name__}: {error}")
    return to_wire(error)
