"""Prefixes on disk: a file without a name, in the kernel's swap folder, that is gone with the driver.

Used by the prefix cache for what it has no memory for and that would cost more to compute again. It is written to the
cache of the system, which brings it to the disk in its own time: nothing here has to survive anything. It decides
nothing about who is worth it.
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
from kernel.drivers.transformers.pages import PAGE, PageStore, Segment, give_back
from kernel.drivers.transformers.radix import Node

Data: TypeAlias = Segment | torch.Tensor

RETRY = 5.0  # seconds without writing after the disk refused
SHARE = 0.2  # of the time that writing may take
BURST = 0.5  # seconds of it that may be saved up
LONGEST = 1 << 40  # bytes of places after which another file is begun: file systems have limits


class DiskRead:
    """A prefix that lies on disk and is wanted in memory.

    Call `read` in any thread, then tell the cache. The prefix continues the one at `above`.
    """

    def __init__(self, node: Node, above: Prefix, read: Callable[[], Data]) -> None:
        self.node = node
        self.above = above
        self.seconds = 0.0  # that it took
        self._read = read

    def read(self) -> Data:
        """Raises `OSError`."""
        started = time.perf_counter()
        data = self._read()
        self.seconds = time.perf_counter() - started
        return data


class PrefixDiskCache:
    """At most `limit` bytes in `folder`; none if that is empty or cannot give room back."""

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
        self._saved, self._saved_at = BURST, clock()

    @property
    def used(self) -> int:
        """Bytes on disk."""
        return sum(store.used for store in self._stores)

    def may_write(self, size: int) -> bool:
        """Whether so many bytes could be written just now, if there is room for them below the limit."""
        now = self._clock()
        self._saved, self._saved_at = min(BURST, self._saved + SHARE * (now - self._saved_at)), now
        return size <= self.limit and self._saved > 0 and now >= self._refused_until

    def write(self, prefix: Prefix) -> bool:
        """Give `prefix` a copy on the disk; whether that went."""
        started = self._clock()
        try:
            store = self._store()
            left = os.fstatvfs(store.descriptor)
            if left.f_bavail * left.f_frsize < DISK_RESERVE:
                raise OSError("the disk is nearly full")
            self._memory.swap_out(prefix, store)
        except OSError:
            self._refused_until = self._clock() + RETRY
            return False
        assert prefix.copy is not None
        seconds = self._clock() - started
        self._saved -= seconds
        self.rates.wrote(prefix.copy.size, seconds)
        return True

    def _store(self) -> PageStore:
        """The file to write to. Raises `OSError`."""
        if not self._stores or self._stores[-1].size >= LONGEST:
            self._stores = [store for store in self._stores if store.used]
            with tempfile.TemporaryFile(dir=self._folder) as file:
                store = PageStore(os.dup(file.fileno()))
            os.ftruncate(store.descriptor, PAGE)
            if not give_back(store.descriptor, 0, PAGE):
                self.limit = 0
                raise OSError("the file system cannot give room back")
            self._stores.append(store)
        return self._stores[-1]
