"""Lock files: a lock has at most one holder, whose pid is in the file. When the holder dies, the lock is free.

Used for the daemon's socket and for its state folder. `take` never waits for a lock.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

OWNER_ONLY = 0o600


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
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, OWNER_ONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise LockHeld(int(holder) if holder.isdigit() else 0) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
