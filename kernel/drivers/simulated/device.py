"""The step loop of the simulated device: obey the kernel, let the time of a step pass, report, repeat.

`__main__` runs the device in a process; tests and the simulator run it on their own loop. Time passes only in
`asyncio.sleep` and timers of the loop, so a test's clock drives the device. It never measures real time.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from math import inf

import msgspec

from ipc.errors import LlmosError, to_wire
from ipc.syscalls import Sampling
from kernel.drivers import protocol
from kernel.drivers.reply_limit import ReplyLimit, reply_limit
from kernel.drivers.simulated import swap
from kernel.drivers.simulated.memory import SimulatedMemory
from kernel.drivers.simulated.options import CostModel, parse
from kernel.drivers.simulated.sequence import SimulatedSequence, hashed, words

Query = protocol.ScoreQuery | protocol.EmbedQuery
Control = protocol.Renew | protocol.Revoke | protocol.SwapOut

DIMENSIONS = 8  # numbers in the vector of a text


class SimulatedDevice:
    """A device that runs sequences and queries. `send` sends to the kernel; `exit_process` ends with an exit code."""

    def __init__(
        self, send: Callable[[protocol.FromDriver], None], exit_process: Callable[[int], None] = os._exit
    ) -> None:
        self._send = send
        self._exit_process = exit_process
        self._costs = CostModel()
        self._memory = SimulatedMemory(0)
        self._max_tokens = 1
        self._sequences: dict[int, SimulatedSequence] = {}
        self._queries: dict[int, Query] = {}
        self._wake = asyncio.Event()
        self._waiting = 0  # how many sequences have a lease and no memory
        self._steps = 0
        self._ballast: list[bytes] = []

    def handle(self, message: protocol.ToDriver) -> None:
        """Act on a message of the kernel immediately; a hanging device ignores it."""
        if self._hangs:
            return
        match message:
            case protocol.Load():
                self._load(message)
            case protocol.Admit():
                self._admit(message)
            case protocol.ScoreQuery() | protocol.EmbedQuery():
                self._queries[message.sequence] = message
            case protocol.Cancel(sequence=number):
                self._cancel(number)
            case protocol.Ended(processes=processes):
                self._memory.forget(processes)
            case protocol.Resize(kv_memory=budget):
                self._memory.budget = budget
            case protocol.Stop():
                self._exit_process(0)
            case protocol.Renew(sequence=number) | protocol.Revoke(sequence=number) | protocol.SwapOut(sequence=number):
                if (sequence := self._sequences.get(number)) is not None:
                    self._control(sequence, message)
        self._wake.set()

    def _control(
        self, sequence: SimulatedSequence, message: protocol.Renew | protocol.Revoke | protocol.SwapOut
    ) -> None:
        if isinstance(message, protocol.Renew):
            sequence.lease += message.tokens
            return
        sequence.lease = 0
        if isinstance(message, protocol.Revoke):
            self._send(protocol.Parked(sequence.id, sequence.reserved is not None))
        else:
            asyncio.get_running_loop().call_later(self._costs.swap_seconds, self._swap_out, sequence, message.path)

    async def run(self) -> None:
        """Run steps for ever: wait for work, let the time of a step pass, report the results of the step."""
        while True:
            batch = self._batch()
            queries = tuple(self._queries.values())
            if self._hangs or not (batch or queries):
                self._report_waiting()
                self._wake.clear()
                await self._wake.wait()
                continue
            prompt_tokens = sum(sequence.length - sequence.computed for sequence in batch)
            prompt_tokens += sum(_tokens_of(query) for query in queries)
            costs = self._costs
            seconds = costs.step_seconds + costs.sequence_seconds * len(batch) + costs.prompt_seconds * prompt_tokens
            await asyncio.sleep(seconds)
            self._step(batch, queries, seconds)

    @property
    def _hangs(self) -> bool:
        after = self._costs.hang_after
        return after is not None and self._steps >= after

    # ---- a step

    def _batch(self) -> list[SimulatedSequence]:
        """The sequences that have a lease and memory.

        Memory is given in the order of admission: if a sequence gets none, the sequences after it get none either.
        """
        leased = [sequence for sequence in self._sequences.values() if sequence.lease > 0]
        batch, full = [], False
        for sequence in leased:
            full = full or (sequence.reserved is None and not self._memory.reserve(sequence))
            if sequence.reserved is not None:
                batch.append(sequence)
        self._waiting = len(leased) - len(batch)
        return batch

    def _step(self, batch: list[SimulatedSequence], queries: tuple[Query, ...], seconds: float) -> None:
        self._steps += 1
        costs = self._costs
        if costs.leak:
            self._ballast.append(b"\x01" * costs.leak)
        if costs.exit_after is not None and self._steps > costs.exit_after:
            self._exit_process(3)
            return
        batch = [sequence for sequence in batch if self._sequences.get(sequence.id) is sequence and sequence.lease > 0]
        progress = [sequence.next(costs.nan) for sequence in batch]
        self._send(protocol.Bundle(progress, 1, seconds, self._memory.usage(self._waiting)))
        for sequence in batch:
            if reason := sequence.ended:
                self._forget(sequence, keep=True)
                self._send(protocol.Done(sequence.id, reason))
            elif sequence.lease == 0:
                self._send(protocol.Parked(sequence.id))
        for query in queries:
            if self._queries.pop(query.sequence, None) is not None:
                self._answer(query)

    def _report_waiting(self) -> None:
        """If no sequence can run because all wait for memory, report that, so that the kernel frees some."""
        if self._waiting and not self._hangs:
            self._send(protocol.Bundle([], 0, 0.0, self._memory.usage(self._waiting)))

    # ---- messages

    def _load(self, message: protocol.Load) -> None:
        try:
            self._costs = costs = parse(message.options)
        except LlmosError as error:
            self._send(protocol.LoadFailed(to_wire(error)))
            return
        self._max_tokens = message.max_tokens
        self._ballast.append(b"\x01" * costs.weights)
        granted = [budget for budget in (costs.kv_memory, message.kv_memory) if budget]
        self._memory = SimulatedMemory(costs.token_bytes, min(granted, default=inf))
        facts = {"device": "simulated", **msgspec.structs.asdict(costs)}
        budget = 0 if self._memory.budget is inf else int(self._memory.budget)
        self._send(protocol.Loading("pretending to load"))
        if not costs.hang_load:
            loaded = protocol.Loaded(costs.context, facts, costs.token_bytes, budget)
            asyncio.get_running_loop().call_later(costs.load_seconds, self._send, loaded)

    def _admit(self, admit: protocol.Admit) -> None:
        try:
            prompt_ids = admit.prompt_ids if admit.prompt_ids is not None else words(admit.prompt)
            sequence = SimulatedSequence(admit, prompt_ids, self._limit(len(prompt_ids), admit.sampling))
            if not self._memory.fits(sequence):
                raise self._memory.refusal(sequence)
        except LlmosError as error:
            self._send(protocol.SequenceFailed(admit.sequence, to_wire(error)))
            return
        if admit.prompt_ids is None:
            self._send(protocol.Admitted(admit.sequence, prompt_ids))
        else:
            why = swap.refusal(admit.swapped, sequence) if admit.swapped else "its state was lost"
            sequence.computed = 0 if why else sequence.length
            self._send(protocol.Restored(admit.sequence, bool(why), why))
        if sequence.ended:
            self._send(protocol.Done(admit.sequence, sequence.ended))
        else:
            self._sequences[admit.sequence] = sequence

    def _limit(self, prompt: int, sampling: Sampling) -> ReplyLimit:
        """The limit of a reply to a prompt of `prompt` tokens, and why the reply ends there. Raises `ContextOverflow`.

        A reply ends by itself after `reply_tokens`, unless its call sets `max_tokens`: then it is of that length.
        """
        limit = reply_limit(sampling.max_tokens, self._max_tokens, prompt, self._costs.context)
        if sampling.max_tokens is None and sampling.constraint is None and self._costs.reply_tokens <= limit.tokens:
            return ReplyLimit(self._costs.reply_tokens, "stop")
        return limit

    def _cancel(self, number: int) -> None:
        sequence = self._sequences.get(number)
        if sequence is not None:
            self._forget(sequence, keep=False)
        elif self._queries.pop(number, None) is None:
            return
        self._send(protocol.Done(number, "cancelled"))

    def _swap_out(self, sequence: SimulatedSequence, path: str) -> None:
        """Write the state of `sequence` to `path`. Called when the simulated time of the write has passed."""
        if self._hangs or self._sequences.get(sequence.id) is not sequence:
            return
        seconds = self._costs.swap_seconds
        try:
            swap.write(path, sequence)
        except OSError as error:
            self._send(protocol.SwappedOut(sequence.id, 0, seconds, to_wire(error)))
        else:
            self._forget(sequence, keep=False)
            size = self._memory.bytes_for(sequence.length)
            self._send(protocol.SwappedOut(sequence.id, size, seconds))
        self._wake.set()

    def _forget(self, sequence: SimulatedSequence, *, keep: bool) -> None:
        del self._sequences[sequence.id]
        self._memory.free(sequence, keep=keep)

    def _answer(self, query: Query) -> None:
        """Answer `query` with made-up numbers, each a function of the query's texts alone."""
        nan = math.nan if self._costs.nan else 0.0
        try:
            if isinstance(query, protocol.EmbedQuery):
                vectors = [_vector(text, nan) for text in query.texts]
                self._send(protocol.Embedded(query.sequence, vectors, _tokens_of(query)))
                return
            prompt = words(query.prompt)
            counts = [max(len(text.split()), 1) for text in query.continuations]
            pairs = zip(query.continuations, counts, strict=True)
            logprobs = [nan - count * (hashed(f"{prompt}{text}") + 1) / 10_000 for text, count in pairs]
            self._send(protocol.Scored(query.sequence, logprobs, counts, len(prompt)))
        except LlmosError as error:
            self._send(protocol.SequenceFailed(query.sequence, to_wire(error)))


def _tokens_of(query: Query) -> int:
    texts = query.texts if isinstance(query, protocol.EmbedQuery) else query.continuations
    return sum(len(text.split()) for text in texts)


def _vector(text: str, nan: float) -> list[float]:
    entries = [hashed(f"{text}{place}") - 25_000 for place in range(DIMENSIONS)]
    length = math.hypot(*entries) or 1.0
    return [entry / length + nan for entry in entries]
