"""Virtual memory by the page: ranges that cost nothing until they are written, and pages that several of them share.

Used by `kv` on CPUs under Linux. A range is anonymous memory without reservation; a `Segment` is a file in memory whose
pages are mapped privately, so that the hardware copies a page when somebody writes to it. It knows nothing of tokens.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

import torch

PAGE = mmap.PAGESIZE
PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE
MAP_FIXED = 0x10
MAP_NORESERVE = 0x4000
MADV_NOHUGEPAGE = 15
FAILED = ctypes.c_void_p(-1).value


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


LIBC = _libc()


class Range:
    """`size` bytes of memory that read as zeros, take up pages as they are written, and give them back by `clear`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.address = _reserve(None, size, 0)

    def tensor(self, dtype: torch.dtype) -> torch.Tensor:
        """All of it, flat. Valid as long as the range is."""
        data = (ctypes.c_char * self.size).from_address(self.address)
        return torch.frombuffer(data, dtype=dtype)

    def clear(self, start: int, size: int) -> None:
        """Give the pages of these bytes back, shared ones too: they read as zeros again."""
        _reserve(self.address + start, size, MAP_FIXED)

    def share(self, start: int, size: int, segment: Segment, offset: int) -> None:
        """Let these bytes be those of `segment` from `offset` on; written pages become the range's own."""
        _map(self.address + start, size, mmap.MAP_PRIVATE | MAP_FIXED, segment.descriptor, offset)

    def __del__(self) -> None:
        LIBC.munmap(self.address, self.size)


class Segment:
    """`size` bytes that ranges may share. They stay for whoever has them mapped, also when this object is gone."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.descriptor = os.memfd_create("llmosd-kv", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, size)

    def write(self, offset: int, data: torch.Tensor) -> None:
        """Copy the contiguous `data` to `offset`."""
        view = memoryview((ctypes.c_char * data.nbytes).from_address(data.data_ptr()))
        done = 0
        while done < data.nbytes:
            done += os.pwrite(self.descriptor, view[done:], offset + done)

    def __del__(self) -> None:
        os.close(self.descriptor)


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
