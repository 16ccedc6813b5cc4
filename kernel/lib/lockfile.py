"""Lock files: a lock has at most one holder, whose pid is in the file. When the holder dies, the lock is free.

Used for the daemon's socket and for its state folder. `take` never waits for a lock.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ipc import daemon_lock
from kernel.lib.private_files import open_private


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
        pid = daemon_lock.pid_in(lock)
        os.close(lock)
        raise LockHeld(pid) from None
    except BaseException:
        os.close(lock)
        raise
    daemon_lock.show(lock)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
