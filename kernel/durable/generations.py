"""Generations of durable processes: persists their progress, so that the next run of the daemon resumes them.

Used by the replay for `Generate`, and by the kernel when the daemon stops. When a driver has swapped such a generation
out, the swap file gets a hard link that survives the daemon, and the journal gets a row with the tokens. A generation
without a row is regenerated from its seed, which yields the same tokens. It never reads a swap file.
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
from kernel.durable.history import CallHistory, CallKey, history_of
from kernel.durable.processes import DurableProcesses
from kernel.journal.changes import DropGenerations, PutGeneration
from kernel.journal.histories import RecoveredState
from kernel.lib.worker_threads import begin_in_thread
from kernel.models.generation import Generation, GenerationSnapshot
from kernel.models.swap import SwapArea

CHECKPOINT_SECONDS = 5.0  # the time for drivers to write their sequences to disk when the daemon stops

log = structlog.get_logger("kernel.durable")


class CheckpointedModels(Protocol):
    """The part of the resource manager that durable generations use."""

    area: SwapArea

    def generate(self, process: Process, call: Generate, *, record: GenerationRecord) -> Coroutine[Any, Any, Any]:
        """Make the call, and report its progress to `record`."""

    async def checkpoint_to_disk(self) -> None:
        """Take all sequences off their slots. Returns when the drivers have written those with a record to disk."""


class GenerationRecord:
    """The persisted progress of one call: a row for each sample, and a swap file if the sample was swapped out.

    `closed`: the call is over, so nothing more is persisted.
    """

    def __init__(self, generations: DurableGenerations, history: CallHistory, key: CallKey) -> None:
        self._generations = generations
        self._rows = history.snapshots.pop(key, {})
        self._history = history
        self.key = key
        self.pid = history.pid
        self.generations: list[Generation] = []
        self.persisted: dict[int, int] = dict.fromkeys(self._rows, 0)  # tokens on disk, by sample
        self.closed = False

    def name(self, sample: int) -> str:
        """The name of the file of `sample`: unique, and the same in every run of the daemon."""
        return f"{self._history.call_id(self.key)}.{sample}"

    def restore_point(self, sample: int) -> GenerationSnapshot | None:
        state, has_file = self._rows.get(sample, (b"", False))
        if not state:
            return None
        try:
            snapshot: GenerationSnapshot = decode(state, GenerationSnapshot)
        except MalformedFrame as error:
            log.warning("cannot read the progress of a generation; it is regenerated", pid=self.pid, why=error.message)
            return None
        self.persisted[sample] = len(snapshot.ids)
        file = self._generations.area.persistent_path(self.name(sample)) if has_file else ""
        return msgspec.structs.replace(snapshot, file=file)

    def set_generations(self, generations: list[Generation]) -> None:
        self.generations = generations

    def swapped_out(self, generation: Generation) -> None:
        self._generations.persist_file(self, self.generations.index(generation), generation.snapshot())


class DurableGenerations:
    """Makes the model calls of durable processes, and persists their progress."""

    def __init__(self, models: CheckpointedModels, commits: Commits, processes: DurableProcesses) -> None:
        self.area = models.area
        self._models = models
        self._commits = commits
        self._processes = processes
        self._records: dict[GenerationRecord, None] = {}  # of the calls in progress
        self._writes: set[asyncio.Future[Any]] = set()

    async def generate(self, process: Process, call: Generate, key: CallKey) -> Any:
        """Make the call, or resume it from the progress that a previous run of the daemon persisted."""
        history = history_of(process)
        if call.sampling.seed is None:  # so that a regenerated reply has the same tokens
            call = msgspec.structs.replace(
                call, sampling=msgspec.structs.replace(call.sampling, seed=history.derived_number(key))
            )
        record = GenerationRecord(self, history, key)
        self._records[record] = None
        try:
            return await self._models.generate(process, call, record=record)
        finally:
            del self._records[record]
            if not self._processes.stopping:
                self._delete(record)

    def opened(self, opening: RecoveredState) -> None:
        """Remove the files that no row of the journal refers to."""
        names = {f"{task:x}.{'.'.join(map(str, rest))}" for task, *rest in opening.generations}
        self._in_thread(partial(self.area.delete_all_but, names), None)

    async def checkpoint_to_disk(self) -> None:
        """Persist the progress of all calls before the daemon stops. Returns within twice `CHECKPOINT_SECONDS`."""
        if not self._records:
            return
        try:
            async with asyncio.timeout(CHECKPOINT_SECONDS):
                await self._models.checkpoint_to_disk()
        except TimeoutError:
            log.warning("not all generations were written to disk in time; the others will be regenerated")
        if self._writes:
            await asyncio.wait(self._writes, timeout=CHECKPOINT_SECONDS)  # a disk may hang
        for record in self._records:
            for sample, generation in enumerate(record.generations):
                if not generation.finished and len(generation.ids) > record.persisted.get(sample, 0):
                    self._persist(record, sample, generation.snapshot(), has_file=False)

    # ---- for the records

    def persist_file(self, record: GenerationRecord, sample: int, snapshot: GenerationSnapshot) -> None:
        """Let the swap file of a generation survive the daemon, and persist the progress of the generation."""

        def linked(error: BaseException | None) -> None:
            if record.closed:
                self._in_thread(partial(self.area.delete, record.name(sample)), None)
            elif error is None:
                self._persist(record, sample, snapshot, has_file=True)
            elif not isinstance(error, FileNotFoundError):  # if it is, the generation was swapped in before
                log.warning(
                    "cannot link the swap file of a generation; if the daemon dies, the generation is regenerated",
                    pid=record.pid,
                    why=str(error),
                )

        self._in_thread(partial(self.area.persist, snapshot.file, record.name(sample)), linked)

    # ---- inside

    def _persist(self, record: GenerationRecord, sample: int, snapshot: GenerationSnapshot, *, has_file: bool) -> None:
        record.persisted[sample] = len(snapshot.ids)
        self._commits.persist(PutGeneration(record.pid, *record.key, sample, encode(snapshot), has_file))

    def _delete(self, record: GenerationRecord) -> None:
        record.closed = True
        if record.persisted:
            self._commits.persist(DropGenerations(record.pid, *record.key))
            for sample in record.persisted:
                self._in_thread(partial(self.area.delete, record.name(sample)), None)

    def _in_thread(self, work: Callable[[], None], then: Callable[[BaseException | None], None] | None) -> None:
        write = begin_in_thread(work)
        self._writes.add(write)

        def done(write: asyncio.Future[Any]) -> None:
            self._writes.discard(write)
            error = None if write.cancelled() else write.exception()
            if then is not None:
                then(error)

        write.add_done_callback(done)


async def restore_count(process: Process, call: Generate, answer: Any) -> None:
    """Count the samples of a replayed call, so that the next generation gets the same number as in the first run."""
    process.generations += call.samples
