"""Prefixes on disk: in files without a name, in the kernel's swap folder, which disappear with the driver.

The prefix cache writes prefixes here that have no room in memory and would take longer to compute than to write and
read. The files need not survive a crash, so writes go to the page cache of the system and are not synced. This module
never decides which prefix is worth its place.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import TypeAlias

import torch

from kernel.drivers.protocol import DISK_RESERVE
from kernel.drivers.transformers.eviction import Rates
from kernel.drivers.transformers.kv import KVMemory, Prefix
from kernel.drivers.transformers.pages import PAGE, PageStore, Segment, punch_hole
from kernel.drivers.transformers.radix import RadixNode

Data: TypeAlias = Segment | torch.Tensor

RETRY = 5.0  # seconds without writes after a write failed
WRITE_SHARE = 0.2  # share of the driver's time that writes may take
BURST = 0.5  # seconds: as much time for writes may be saved up
MAX_FILE_BYTES = 1 << 40  # from this length on, writes go to a new file: places in a file are never reused


class DiskRead:
    """One read of a prefix from disk into memory.

    Call `read` in any thread, then `PrefixCache.finish_read`. The prefix of `node` continues the prefix `above`.
    """

    def __init__(self, node: RadixNode, above: Prefix, read: Callable[[], Data]) -> None:
        self.node = node
        self.above = above
        self.seconds = 0.0  # that the read took
        self._read = read

    def read(self) -> Data:
        """Read the prefix and return its data. Raises `OSError`."""
        started = time.perf_counter()
        data = self._read()
        self.seconds = time.perf_counter() - started
        return data


class PrefixDiskCache:
    """At most `limit` bytes in `folder`. Nothing is written if `folder` is "" or cannot have files with holes."""

    def __init__(
        self, folder: str, limit: int, memory: KVMemory, rates: Rates, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rates = rates
        self.limit = limit if folder else 0
        self._folder = folder
        self._memory = memory
        self._clock = clock
        self._stores: list[PageStore] = []
        self._refused_until = 0.0
        self._write_credit, self._credit_at = BURST, clock()

    @property
    def used(self) -> int:
        """How many bytes the prefixes take on disk."""
        return sum(store.used for store in self._stores)

    def may_write(self, size: int) -> bool:
        """Whether a write of `size` bytes is allowed now. The caller must also compare `used` with the limit."""
        now = self._clock()
        self._write_credit = min(BURST, self._write_credit + WRITE_SHARE * (now - self._credit_at))
        self._credit_at = now
        return size <= self.limit and self._write_credit > 0 and now >= self._refused_until

    def write(self, prefix: Prefix) -> bool:
        """Write a copy of `prefix` to disk. Returns False if that failed."""
        started = self._clock()
        try:
            store = self._store()
            disk = os.fstatvfs(store.descriptor)
            if disk.f_bavail * disk.f_frsize < DISK_RESERVE:
                raise OSError("the disk is nearly full")
            self._memory.write_prefix(prefix, store)
        except OSError:
            self._refused_until = self._clock() + RETRY
            return False
        assert prefix.disk_copy is not None
        seconds = self._clock() - started
        self._write_credit -= seconds
        self.rates.record_write(prefix.disk_copy.size, seconds)
        return True

    def _store(self) -> PageStore:
        """The file to write to, which is created if there is none or it is too long. Raises `OSError`."""
        if not self._stores or self._stores[-1].size >= MAX_FILE_BYTES:
            self._stores = [store for store in self._stores if store.used]
            with tempfile.TemporaryFile(dir=self._folder) as file:
                store = PageStore(os.dup(file.fileno()))
            os.ftruncate(store.descriptor, PAGE)
            if not punch_hole(store.descriptor, 0, PAGE):
                self.limit = 0
                raise OSError("the file system cannot punch holes in files")
            self._stores.append(store)
        return self._stores[-1]
