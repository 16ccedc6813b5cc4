"""SwapIO of sequences on disk: written for the kernel, and read back, on a thread, while others run.

Used by `call_lifecycle`. What a file holds is in `swap_format`; who goes to disk is the kernel's business.
"""

from __future__ import annotations

import queue
import time
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
from kernel.drivers.transformers.report import BundleReport, Event, named
from kernel.drivers.transformers.sequence import EngineSequence

READING, WRITING = "reading", "writing"  # what a sequence is busy with


class SwapOwner(Protocol):
    """Whoever holds the sequences."""

    def holds(self, sequence: EngineSequence) -> bool:
        """Whether it was not cancelled meanwhile."""

    def leave(self, sequence: EngineSequence, event: Event) -> None:
        """Forget it, and say so."""


class SwapIO:
    """`inbox` calls back, between steps, what `thread` has done."""

    def __init__(
        self,
        inbox: queue.SimpleQueue[Any],
        report: BundleReport,
        placement: KVAllocator,
        owner: SwapOwner,
        fingerprint: str,
    ) -> None:
        self.thread = ThreadPoolExecutor(1, "swap")
        self._inbox = inbox
        self._report = report
        self._placement = placement
        self._owner = owner
        self._fingerprint = fingerprint

    def write(self, sequence: EngineSequence, order: SwapOut) -> None:
        """Write its state where the kernel says, and forget it. An error leaves it as it was, and is told."""
        if sequence.lease or sequence.busy:
            error = DriverFailed(f"sequence {sequence.id} is not parked ({sequence.busy or 'it runs'})")
            self._report.event(SwappedOut(sequence.id, 0, 0.0, named(error)))
            return
        sequence.busy = WRITING
        started = time.perf_counter()
        self._in_thread(partial(self._write, sequence, Path(order.path)), partial(self._written, sequence, started))

    def read(self, sequence: EngineSequence) -> None:
        """Fill the slab of `sequence`, which it just got, from the file of its state."""
        path, sequence.swapped = Path(sequence.swapped), ""
        sequence.busy = READING
        read = partial(swap_format.read, path, list(sequence.tokens), sequence.prompt, self._fingerprint)
        self._in_thread(read, partial(self._was_read, sequence))

    def fetch(self, fetches: Iterable[DiskRead]) -> None:
        """Read prefixes back."""
        for fetch in fetches:
            self._in_thread(fetch.read, partial(self._placement.fetched, fetch))

    # ---- inside

    def _write(self, sequence: EngineSequence, path: Path) -> int:
        memory, slab = self._placement.memory, sequence.slab
        if sequence.swapped:  # it was not read back yet
            return swap_format.move(Path(sequence.swapped), path)
        if slab is None:
            kv = torch.empty(memory.geometry.layers, 0, memory.geometry.row)
        else:
            kv = memory.tokens(slab, 0, slab.length)
        return swap_format.write(path, kv, sequence.tokens, sequence.prompt, self._fingerprint)

    def _written(self, sequence: EngineSequence, started: float, future: Future[int]) -> None:
        sequence.busy = ""
        if not self._owner.holds(sequence):
            self._placement.free(sequence, keep=False)  # its process may have ended, too
            return
        seconds = time.perf_counter() - started
        error = future.exception()
        if sequence.lease and error is None:
            error = DriverFailed("it was renewed meanwhile, and goes on")
        if error is not None:
            self._report.event(SwappedOut(sequence.id, 0, seconds, named(error)))
            return
        self._placement.free(sequence, keep=False)  # its prompt lies on the disk with the rest
        self._owner.leave(sequence, SwappedOut(sequence.id, future.result(), seconds))

    def _was_read(self, sequence: EngineSequence, future: Future[torch.Tensor]) -> None:
        sequence.busy = ""
        if not self._owner.holds(sequence):
            self._placement.free(sequence, keep=False)
            return
        error = future.exception()
        slab = sequence.slab
        assert slab is not None
        if error is None and (kv := future.result()).shape[1] > slab.length:
            # What it begins with and others have, too, has the same bits, and stays shared.
            self._placement.memory.tokens(slab, slab.length, kv.shape[1]).copy_(kv[:, slab.length :])
            slab.length = kv.shape[1]
        self._report.event(Restored(sequence.id, error is not None, "" if error is None else str(error)))

    def _in_thread(self, work: Callable[[], Any], then: Callable[[Future[Any]], None]) -> None:
        """Run `work` in the thread for disks, and `then` with its future between steps."""
        self.thread.submit(work).add_done_callback(lambda future: self._inbox.put(partial(then, future)))
