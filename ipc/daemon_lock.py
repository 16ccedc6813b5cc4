"""The lock beside the daemon's socket, by which a client sees a daemon that does not listen yet.

The daemon holds the lock from before it listens until its end, and `kernel.lib.lockfile` takes it. This module never
takes a lock, so looking at it disturbs no daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from pathlib import Path

WHOLE_FILE = struct.Struct("hhqqi4x")  # struct flock of Linux, 64 bits: type, whence, start, length, pid


def lock_path(socket: Path) -> Path:
    """The lock file beside the socket."""
    return socket.with_name(socket.name + ".lock")


def show(lock: int) -> None:
    """Make the lock that this process holds on the open file `lock` visible to `holder`.

    Nobody can ask who holds a lock of flock(2), so this adds one of fcntl(2), which ends at the same moment.
    """
    with contextlib.suppress(OSError):  # a file system without such locks: clients do not wait for the daemon
        fcntl.fcntl(lock, fcntl.F_OFD_SETLK, WHOLE_FILE.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


def holder(path: Path) -> int | None:
    """The pid of the process that holds the lock at `path`, 0 if its pid is unknown, None if no process holds it.

    A lock in a file of another user counts for nothing, unless root asks.
    """
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status, user = os.fstat(lock), os.geteuid()
        if not stat.S_ISREG(status.st_mode) or (user != 0 and status.st_uid not in (0, user)):
            return None
        asked = WHOLE_FILE.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind = WHOLE_FILE.unpack(fcntl.fcntl(lock, fcntl.F_OFD_GETLK, asked))[0]
        return None if kind == fcntl.F_UNLCK else pid_in(lock)
    except OSError:
        return None
    finally:
        os.close(lock)


def pid_in(lock: int) -> int:
    """The pid in an open lock file; 0 if there is none."""
    text = os.pread(lock, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isascii() and text.isdigit() else 0
