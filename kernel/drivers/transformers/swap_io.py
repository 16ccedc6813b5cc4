"""SwapIO: writes the KV of parked sequences to disk and reads it back, in a thread, while other sequences run.

`call_lifecycle` uses it; `swap_format` defines the file. It never chooses the sequence to swap out: the kernel does.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from ipc.errors import DriverFailed
from kernel.drivers.protocol import Restored, SwapOut, SwappedOut
from kernel.drivers.transformers import swap_format
from kernel.drivers.transformers.kv_allocator import KVAllocator
from kernel.drivers.transformers.prefix_disk_cache import DiskRead
from kernel.drivers.transformers.report import BundleReport, Event, wire_error
from kernel.drivers.transformers.sequence import EngineSequence

# A job that takes longer than this is assumed to hang.
PATIENCE = 30.0  # seconds
SLOWEST = 5_000_000  # further bytes in a second

READING, WRITING = "reading", "writing"  # values of `EngineRequest.busy`


class SwapOwner(Protocol):
    """The holder of the sequences, `CallLifecycle`."""

    def is_active(self, sequence: EngineSequence) -> bool:
        """Whether `sequence` is still in the driver: it has not ended, failed or been cancelled."""

    def finish(self, sequence: EngineSequence, event: Event) -> None:
        """Remove the sequence, free its memory, and report `event`."""


class SwapIO:
    """Runs jobs in `thread`. The callback of a finished job goes into `inbox`; the engine calls it between steps."""

    def __init__(
        self,
        inbox: queue.SimpleQueue[Any],
        report: BundleReport,
        allocator: KVAllocator,
        owner: SwapOwner,
        fingerprint: str,
    ) -> None:
        self.thread = ThreadPoolExecutor(1, "swap")
        self._inbox = inbox
        self._report = report
        self._allocator = allocator
        self._owner = owner
        self._fingerprint = fingerprint
        self._jobs: deque[float] = deque()  # when each unfinished job was added, the oldest first

    def write(self, sequence: EngineSequence, order: SwapOut) -> None:
        """Write the KV of `sequence` to the path in `order`, and remove the sequence. On an error, it stays parked."""
        if sequence.lease or sequence.busy:
            error = DriverFailed(f"sequence {sequence.id} is not parked (it is {sequence.busy or 'running'})")
            self._report.event(SwappedOut(sequence.id, 0, 0.0, wire_error(error)))
            return
        sequence.busy = WRITING
        started = time.perf_counter()
        self._in_thread(partial(self._write, sequence, Path(order.path)), partial(self._written, sequence, started))

    def read(self, sequence: EngineSequence) -> None:
        """Fill the new slab of `sequence` from its swap file. If that fails, the KV is recomputed."""
        path, sequence.swapped = Path(sequence.swapped), ""
        sequence.busy = READING
        read = partial(swap_format.read, path, list(sequence.tokens), sequence.prompt, self._fingerprint)
        self._in_thread(read, partial(self._was_read, sequence))

    def read_prefixes(self, disk_reads: Iterable[DiskRead]) -> None:
        """Read prefixes from disk, and give them back to the prefix cache."""
        for read in disk_reads:
            self._in_thread(read.read, partial(self._allocator.finish_disk_read, read))

    # ---- inside

    def _write(self, sequence: EngineSequence, path: Path) -> int:
        memory, slab = self._allocator.memory, sequence.slab
        if sequence.swapped:  # the KV of an earlier swap was not read back yet
            return swap_format.move(Path(sequence.swapped), path)
        if slab is None:
            kv = torch.empty(memory.geometry.layers, 0, memory.geometry.row)
        else:
            kv = memory.tokens(slab, 0, slab.length)
        return swap_format.write(path, kv, sequence.tokens, sequence.prompt, self._fingerprint)

    def _written(self, sequence: EngineSequence, started: float, future: Future[int]) -> None:
        sequence.busy = ""
        if not self._owner.is_active(sequence):
            self._allocator.free(sequence, cache=False)  # do not cache the prompt: its process may have ended
            return
        seconds = time.perf_counter() - started
        error = future.exception()
        if sequence.lease and error is None:
            error = DriverFailed(f"sequence {sequence.id} was renewed while its KV was written, so it continues")
        if error is not None:
            self._report.event(SwappedOut(sequence.id, 0, seconds, wire_error(error)))
            return
        self._allocator.free(sequence, cache=False)  # do not cache the prompt: the swap file contains it
        self._owner.finish(sequence, SwappedOut(sequence.id, future.result(), seconds))

    def _was_read(self, sequence: EngineSequence, future: Future[torch.Tensor]) -> None:
        sequence.busy = ""
        if not self._owner.is_active(sequence):
            self._allocator.free(sequence, cache=False)
            return
        error = future.exception()
        slab = sequence.slab
        assert slab is not None
        if error is None and (kv := future.result()).shape[1] > slab.length:
            # The slab already begins with a cached prefix, which has the same bits as the file: do not overwrite it.
            self._allocator.memory.tokens(slab, slab.length, kv.shape[1]).copy_(kv[:, slab.length :])
            slab.length = kv.shape[1]
        self._report.event(Restored(sequence.id, error is not None, "" if error is None else str(error)))

    def _in_thread(self, job: Callable[[], Any], then: Callable[[Future[Any]], None]) -> None:
        """Run `job` in `thread`. Between two later steps, the engine calls `then` with the future of the job."""
        self._jobs.append(time.perf_counter())
        self.thread.submit(job).add_done_callback(partial(self._done, then))

    def _done(self, then: Callable[[Future[Any]], None], future: Future[Any]) -> None:
        self._jobs.popleft()
        if self._jobs:
            self._jobs[0] = time.perf_counter()  # only now the next job begins
        self._inbox.put(partial(then, future))

    def works(self, size: int) -> bool:
        """Whether a job runs, and not for so long that it must be hanging. It reads or writes up to `size` bytes."""
        try:
            began = self._jobs[0]
        except IndexError:  # no job, or the thread has just finished the last one
            return False
        return time.perf_counter() - began < PATIENCE + size / SLOWEST
