"""Virtual memory by the page: ranges that take no memory until they are written, and pages that ranges share.

`kv` uses it on CPUs under Linux. A `Range` is anonymous memory without reservation. A `Segment` is a part of a file.
Ranges map segments of a file in memory privately, so that the hardware copies a page at the first write to it; a file
on disk is only read and written (`prefix_disk_cache`). This module never sees a token.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import torch

PAGE = mmap.PAGESIZE
PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE
PROT_NONE = 0
MAP_FIXED = 0x10
MAP_NORESERVE = 0x4000
MADV_NOHUGEPAGE = 15
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
MAX_MAP_COUNT = 65530  # the default of Linux
BUFFER = 1 << 20  # bytes copied in one go
FAILED = ctypes.c_void_p(-1).value


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    return libc


LIBC = _libc()


class Range:
    """`size` bytes of memory. They read as zeros, get pages when they are written, and lose the pages by `clear`.

    A guard page lies at either end, so a wrong index kills the process instead of corrupting other memory.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        pages = -(-size // PAGE)
        first = _reserve(None, (pages + 2) * PAGE, 0)
        for guard in (first, first + (pages + 1) * PAGE):
            LIBC.mprotect(guard, PAGE, PROT_NONE)
        self.address = first + PAGE
        weakref.finalize(self, LIBC.munmap, first, (pages + 2) * PAGE).atexit = False

    def tensor(self, dtype: torch.dtype) -> torch.Tensor:
        """The whole range, flat. The tensor must not be used after the range is freed."""
        data = (ctypes.c_char * self.size).from_address(self.address)
        return torch.frombuffer(data, dtype=dtype)

    def clear(self, start: int, size: int) -> None:
        """Return the pages of these bytes, own and shared ones, to the system. The bytes read as zeros again."""
        _reserve(self.address + start, size, MAP_FIXED)

    def share(self, start: int, size: int, segment: Segment, offset: int) -> None:
        """Map `segment`, from its `offset` on, to these bytes. A page that is written becomes the range's own copy.

        The mapping takes up to two of the memory areas that a process may have; see `max_areas`.
        """
        descriptor, offset = segment.store.descriptor, segment.start + offset
        _map(self.address + start, size, mmap.MAP_PRIVATE | MAP_FIXED, descriptor, offset)


class PageStore:
    """A file that holds any number of segments with one descriptor. A segment's place is never reused.

    The store makes a file in memory, or takes over the open file `descriptor`. `size`: the length of the file in bytes;
    `used`: bytes of the segments that were not freed.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("llmosd-kv", os.MFD_CLOEXEC) if descriptor is None else descriptor
        self.size = self.used = 0
        self._lock = Lock()

    def segment(self, size: int) -> Segment:
        """A new segment of `size` bytes, rounded up to whole pages. Raises `OSError`."""
        size = -(-size // PAGE) * PAGE
        start = self.size
        os.ftruncate(self.descriptor, start + size)
        self.size += size
        with self._lock:
            self.used += size
        return Segment(self, start, size)

    def release(self, segment: Segment) -> None:
        """Free the pages of `segment`. Its destructor calls this, in any thread."""
        with self._lock:
            self.used -= segment.size
        # In a cycle of garbage the store may be finalized before its segments: then the descriptor is closed.
        if self.descriptor >= 0:
            punch_hole(self.descriptor, segment.start, segment.size)

    def __del__(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)


class Segment:
    """`size` bytes of a store, which ranges can share. The store frees their pages when this object is destroyed."""

    def __init__(self, store: PageStore, start: int, size: int) -> None:
        self.store = store
        self.start = start
        self.size = size

    def write(self, offset: int, data: torch.Tensor) -> None:
        """Copy the contiguous `data` to `offset`."""
        _transfer(os.pwritev, self.store.descriptor, _bytes(data), self.start + offset)

    def read(self, offset: int, data: torch.Tensor) -> None:
        """Fill the contiguous `data` from `offset` on."""
        _transfer(os.preadv, self.store.descriptor, _bytes(data), self.start + offset)

    def copy_to(self, other: Segment) -> None:
        """Copy this segment to `other`, which has the same size. Raises `OSError`."""
        buffer = memoryview(bytearray(min(BUFFER, self.size)))
        for offset in range(0, self.size, BUFFER):
            part = buffer[: min(BUFFER, self.size - offset)]
            _transfer(os.preadv, self.store.descriptor, part, self.start + offset)
            _transfer(os.pwritev, other.store.descriptor, part, other.start + offset)

    def __del__(self) -> None:
        self.store.release(self)


def punch_hole(descriptor: int, start: int, size: int) -> bool:
    """Free these bytes of a file, so that they read as zeros. Returns False if the file system cannot do that."""
    return not LIBC.fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, size)


def max_areas() -> int:
    """How many memory areas (separate mappings) a process may have."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return MAX_MAP_COUNT


def _transfer(call: Callable[[int, list[memoryview], int], int], descriptor: int, view: memoryview, place: int) -> None:
    """Read or write all of `view` at `place` of the file. Raises `OSError`."""
    done = 0
    while done < len(view):
        moved = call(descriptor, [view[done:]], place + done)
        if not moved:
            raise OSError(errno.EIO, f"the file ends {len(view) - done} bytes too early")
        done += moved


def _bytes(data: torch.Tensor) -> memoryview:
    return memoryview((ctypes.c_char * data.nbytes).from_address(data.data_ptr()))


def _reserve(address: int | None, size: int, flags: int) -> int:
    found = _map(address, size, flags | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    # With huge pages, the first token of a sequence would take 2 MB in every layer.
    LIBC.madvise(found, size, MADV_NOHUGEPAGE)
    return found


def _map(address: int | None, size: int, flags: int, descriptor: int, offset: int) -> int:
    found = LIBC.mmap(address, size, PROTECTION, flags, descriptor, offset)
    if found == FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"mmap of {size} bytes: {os.strerror(number)}")
    return int(found)
