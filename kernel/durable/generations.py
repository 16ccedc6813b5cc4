"""Generations of durable processes: how far each has come when it leaves its slot, so that the next life goes on there.

Used by the replay for `Generate`, and by the kernel when the daemon stops. Whenever a driver has written the state of
such a generation to disk, the file gets a second name that outlives the daemon, and the journal a row with its tokens.
What is not written down in time, or was running when the daemon died, is made anew from its seed: the same tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

import msgspec
import structlog

from ipc.codec import decode, encode
from ipc.errors import MalformedFrame
from ipc.syscalls import Generate
from kernel.core.process import Process
from kernel.durable.commits import Commits
from kernel.durable.history import CallHistory, Key, history_of
from kernel.durable.processes import DurableProcesses
from kernel.journal.changes import DropGenerations, PutGeneration
from kernel.journal.histories import RecoveredState
from kernel.models.generation import Generation, GenerationSnapshot
from kernel.models.swap import SwapArea

PUT_ASIDE_SECONDS = 5.0  # that drivers get to write down what they hold when the daemon stops

log = structlog.get_logger("kernel.durable")


class CheckpointedModels(Protocol):
    """What is needed of the resource manager."""

    area: SwapArea

    def generate(self, process: Process, call: Generate, *, record: GenerationRecord) -> Coroutine[Any, Any, Any]:
        """Make the call, and tell `record`."""

    async def checkpoint_to_disk(self) -> None:
        """Take all off their slots, and have written down what has a record. Returns when that is done."""


class GenerationRecord:
    """What is kept of one call: a row and a file for each of its samples that was ever written down."""

    def __init__(self, keeper: DurableGenerations, history: CallHistory, key: Key) -> None:
        self._keeper = keeper
        self._rows = history.begun.pop(key, {})
        self._history = history
        self.key = key
        self.pid = history.pid
        self.generations: list[Generation] = []
        self.kept: dict[int, int] = dict.fromkeys(self._rows, 0)  # tokens, by sample
        self.over = False

    def name(self, sample: int) -> str:
        """Of the file: the same in every life, and of no other generation."""
        return f"{self._history.call_id(self.key)}.{sample}"

    def begun(self, sample: int) -> GenerationSnapshot | None:
        state, has_file = self._rows.get(sample, (b"", False))
        if not state:
            return None
        try:
            begun: GenerationSnapshot = decode(state, GenerationSnapshot)
        except MalformedFrame as error:
            log.warning("a generation of an earlier life is made anew", pid=self.pid, why=error.message)
            return None
        self.kept[sample] = len(begun.ids)
        return msgspec.structs.replace(begun, file=self._keeper.area.kept(self.name(sample)) if has_file else "")

    def made(self, generations: list[Generation]) -> None:
        self.generations = generations

    def swapped_out(self, generation: Generation) -> None:
        self._keeper.keep_file(self, self.generations.index(generation), generation.begun())


class DurableGenerations:
    """Makes the calls of durable processes, and keeps how far they come."""

    def __init__(self, models: CheckpointedModels, commits: Commits, processes: DurableProcesses) -> None:
        self.area = models.area
        self._models = models
        self._commits = commits
        self._processes = processes
        self._loop = asyncio.get_running_loop()
        self._records: dict[GenerationRecord, None] = {}  # of the calls that are being made
        self._writes: set[asyncio.Future[Any]] = set()

    async def generate(self, process: Process, call: Generate, key: Key) -> Any:
        """Make the call, or go on with it where an earlier life put it aside."""
        history = history_of(process)
        if call.sampling.seed is None:  # had anew, it is the same reply
            call = msgspec.structs.replace(
                call, sampling=msgspec.structs.replace(call.sampling, seed=history.number(key))
            )
        record = GenerationRecord(self, history, key)
        self._records[record] = None
        try:
            return await self._models.generate(process, call, record=record)
        finally:
            del self._records[record]
            if not self._processes.stopping:
                self._forget(record)

    def opened(self, opening: RecoveredState) -> None:
        """Remove the files that nobody will ask for."""
        names = {f"{task:x}.{'.'.join(map(str, rest))}" for task, *rest in opening.generations}
        self._in_thread(partial(self.area.retain, names), None)

    async def checkpoint_to_disk(self) -> None:
        """The daemon stops: write down how far all have come. Returns within twice `PUT_ASIDE_SECONDS`."""
        if not self._records:
            return
        try:
            async with asyncio.timeout(PUT_ASIDE_SECONDS):
                await self._models.checkpoint_to_disk()
        except TimeoutError:
            log.warning("not all generations were written down in time; some will be made anew")
        if self._writes:
            await asyncio.wait(self._writes, timeout=PUT_ASIDE_SECONDS)  # a disk may hang
        for record in self._records:
            for sample, generation in enumerate(record.generations):
                if not generation.finished and len(generation.ids) > record.kept.get(sample, 0):
                    self._keep(record, sample, generation.begun(), has_file=False)

    # ---- for the records

    def keep_file(self, record: GenerationRecord, sample: int, begun: GenerationSnapshot) -> None:
        """Have the file of a generation outlive the daemon, and write down how far it has come."""

        def linked(error: BaseException | None) -> None:
            if record.over:
                self._in_thread(partial(self.area.drop, record.name(sample)), None)
            elif error is None:
                self._keep(record, sample, begun, has_file=True)
            elif not isinstance(error, FileNotFoundError):  # else it has been read back already
                log.warning("the state of a generation will not outlive the daemon", pid=record.pid, why=str(error))

        self._in_thread(partial(self.area.keep, begun.file, record.name(sample)), linked)

    # ---- inside

    def _keep(self, record: GenerationRecord, sample: int, begun: GenerationSnapshot, *, has_file: bool) -> None:
        record.kept[sample] = len(begun.ids)
        self._commits.keep(PutGeneration(record.pid, *record.key, sample, encode(begun), has_file))

    def _forget(self, record: GenerationRecord) -> None:
        record.over = True
        if record.kept:
            self._commits.keep(DropGenerations(record.pid, *record.key))
            for sample in record.kept:
                self._in_thread(partial(self.area.drop, record.name(sample)), None)

    def _in_thread(self, work: Callable[[], None], then: Callable[[BaseException | None], None] | None) -> None:
        write = self._loop.run_in_executor(None, work)
        self._writes.add(write)

        def done(write: asyncio.Future[Any]) -> None:
            self._writes.discard(write)
            error = None if write.cancelled() else write.exception()
            if then is not None:
                then(error)

        write.add_done_callback(done)


async def count(process: Process, call: Generate, answer: Any) -> None:
    """The next generation of the process has the number that it would have had."""
    process.generations += call.samples
