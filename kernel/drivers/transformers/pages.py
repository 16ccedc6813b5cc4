"""Virtual memory by the page: ranges that cost nothing until they are written, and pages that several of them share.

Used by `kv` on CPUs under Linux. A range is anonymous memory without reservation; a `Segment` is a part of a file: of
one in memory, whose pages are mapped privately, so that the hardware copies a page when somebody writes to it, or of
one on disk (see `prefix_disk_cache`). It knows nothing of tokens.
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
BUFFER = 1 << 20  # bytes that are copied at once
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
    """`size` bytes of memory that read as zeros, take up pages as they are written, and give them back by `clear`.

    Before and after them is a page that nobody may touch: a wrong index ends the process, and spoils no other memory.
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
        """All of it, flat. Valid as long as the range is."""
        data = (ctypes.c_char * self.size).from_address(self.address)
        return torch.frombuffer(data, dtype=dtype)

    def clear(self, start: int, size: int) -> None:
        """Give the pages of these bytes back, shared ones too: they read as zeros again."""
        _reserve(self.address + start, size, MAP_FIXED)

    def share(self, start: int, size: int, segment: Segment, offset: int) -> None:
        """Let these bytes be those of `segment` from `offset` on; written pages become the range's own.

        Takes up to two of the areas that a process may have; see `most_areas`.
        """
        descriptor, offset = segment.store.descriptor, segment.start + offset
        _map(self.address + start, size, mmap.MAP_PRIVATE | MAP_FIXED, descriptor, offset)


class PageStore:
    """A file of which all segments are parts: one descriptor for however many. Places are never reused.

    In memory, or the one that is open as `descriptor`. `size`: of all places so far; `used`: of the segments there are.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("llmosd-kv", os.MFD_CLOEXEC) if descriptor is None else descriptor
        self.size = self.used = 0
        self._lock = Lock()

    def segment(self, size: int) -> Segment:
        """At least `size` bytes, in whole pages. Raises `OSError`."""
        size = -(-size // PAGE) * PAGE
        start = self.size
        os.ftruncate(self.descriptor, start + size)
        self.size += size
        with self._lock:
            self.used += size
        return Segment(self, start, size)

    def gave_up(self, segment: Segment) -> None:
        """Nobody needs `segment` any more. Any thread may be the last that did."""
        with self._lock:
            self.used -= segment.size
        # Of garbage in a circle the store may go first: then its number may be that of another file by now.
        if self.descriptor >= 0:
            give_back(self.descriptor, segment.start, segment.size)

    def __del__(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)


class Segment:
    """`size` bytes that ranges may share as long as this object is; then their pages are given back."""

    def __init__(self, store: PageStore, start: int, size: int) -> None:
        self.store = store
        self.start = start
        self.size = size

    def write(self, offset: int, data: torch.Tensor) -> None:
        """Copy the contiguous `data` to `offset`."""
        _move(os.pwritev, self.store.descriptor, _bytes(data), self.start + offset)

    def read(self, offset: int, data: torch.Tensor) -> None:
        """Fill the contiguous `data` from `offset` on."""
        _move(os.preadv, self.store.descriptor, _bytes(data), self.start + offset)

    def copy_to(self, other: Segment) -> None:
        """Copy all of it to one of the same size. Raises `OSError`."""
        buffer = memoryview(bytearray(min(BUFFER, self.size)))
        for offset in range(0, self.size, BUFFER):
            part = buffer[: min(BUFFER, self.size - offset)]
            _move(os.preadv, self.store.descriptor, part, self.start + offset)
            _move(os.pwritev, other.store.descriptor, part, other.start + offset)

    def __del__(self) -> None:
        self.store.gave_up(self)


def give_back(descriptor: int, start: int, size: int) -> bool:
    """Let a file read as zeros there, and take no room; whether it can."""
    return not LIBC.fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, size)


def most_areas() -> int:
    """How many areas of memory, each mapped from something else than its neighbours, a process may have."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return MAX_MAP_COUNT


def _move(call: Callable[[int, list[memoryview], int], int], descriptor: int, view: memoryview, place: int) -> None:
    """Read or write all of `view` there. Raises `OSError`."""
    done = 0
    while done < len(view):
        moved = call(descriptor, [view[done:]], place + done)
        if not moved:
            raise OSError(errno.EIO, "the file ends too early")
        done += moved


def _bytes(data: torch.Tensor) -> memoryview:
    return memoryview((ctypes.c_char * data.nbytes).from_address(data.data_ptr()))


def _reserve(address: int | None, size: int, flags: int) -> int:
    found = _map(address, size, flags | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    # With huge pages the first token of a sequence would take two megabytes in every layer.
    LIBC.madvise(found, size, MADV_NOHUGEPAGE)
    return found


def _map(address: int | None, size: int, flags: int, descriptor: int, offset: int) -> int:
    found = LIBC.mmap(address, size, PROTECTION, flags, descriptor, offset)
    if found == FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"mmap of {size} bytes: {os.strerror(number)}")
    return int(found)
