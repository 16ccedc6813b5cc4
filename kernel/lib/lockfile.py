"""Lock files: a lock has at most one holder, whose pid is in the file. When the holder dies, the lock is free.

Used for the daemon's socket and for its state folder, and by clients, which look whether a daemon is starting. `take`
never waits for a lock, and `holder` never takes one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

from kernel.lib.private_files import open_private

WHOLE_FILE = struct.Struct("hhqqi4x")  # struct flock of Linux, 64 bits: type, whence, start, length, pid


class LockHeld(Exception):
    """Another process holds the lock; `pid` is 0 if the file does not contain its pid."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.pid = pid


def take(path: Path) -> int:
    """Lock the file at `path` and write our pid into it, creating the file if needed.

    Returns a descriptor; the lock is held until this descriptor is closed. Raises `LockHeld`, and `OSError` if the file
    cannot be written.
    """
    lock = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = _pid_in(lock)
        os.close(lock)
        raise LockHeld(pid) from None
    except BaseException:
        os.close(lock)
        raise
    with contextlib.suppress(OSError):  # only `holder` needs this second lock: nobody can ask about the first one
        fcntl.fcntl(lock, fcntl.F_OFD_SETLK, WHOLE_FILE.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def holder(path: Path) -> int | None:
    """The pid of the process that holds the lock at `path`, 0 if its pid is unknown, None if no process holds it.

    A lock in a file of another user counts for nothing, unless root asks.
    """
    try:
        lock = open_private(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        asked = WHOLE_FILE.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind = WHOLE_FILE.unpack(fcntl.fcntl(lock, fcntl.F_OFD_GETLK, asked))[0]
        return None if kind == fcntl.F_UNLCK else _pid_in(lock)
    except OSError:
        return None
    finally:
        os.close(lock)


def _pid_in(lock: int) -> int:
    text = os.pread(lock, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isascii() and text.isdigit() else 0
