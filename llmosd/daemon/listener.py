"""The daemon's listening socket: claimed under a lock, so that no two daemons ever share or steal a path.

Used by the daemon only. A stale socket file never stops a start, and a live daemon is never disturbed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from ipc.errors import NoDaemon, SocketInUse, SocketPathInvalid
from ipc.unix import check_path, try_connect
from kernel.lib import lockfile

BACKLOG = 1024


class SocketClaim:
    """The lock on a socket path, held for the life of the daemon, and the socket bound there.

    `given` is a socket that listens already, as systemd opened it: its file is not ours, and never removed.
    """

    def __init__(self, path: Path, given: socket.socket | None = None) -> None:
        """Lock the path. Raises `SocketInUse` with the pid of the holder, or `SocketPathInvalid`."""
        if given is not None:
            path = Path(given.getsockname())
        check_path(path)
        self.path = path
        self.given = given
        self._inode: int | None = None  # of the socket file that we made
        _make_private_folder(path.parent)
        lock = path.with_name(path.name + ".lock")
        try:
            self._lock = lockfile.take(lock)
        except lockfile.LockHeld as error:
            raise SocketInUse(
                f"a daemon with pid {error.pid or 'unknown'} already serves {path}; stop it with `llmos shutdown`, or "
                "choose another path with --socket",
                pid=error.pid,
            ) from None
        except OSError as error:
            raise SocketPathInvalid(f"cannot write {lock}: {error.strerror}") from None

    def bind(self) -> socket.socket:
        """A listening socket at the path, in place of a stale file."""
        if self.given is not None:
            return self.given
        self._remove_stale()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        old = os.umask(0o777 & ~lockfile.OWNER_ONLY)
        try:
            listener.bind(str(self.path))
        except OSError as error:
            listener.close()
            raise SocketPathInvalid(f"cannot listen at {self.path}: {error.strerror}") from None
        finally:
            os.umask(old)
        listener.listen(BACKLOG)
        self._inode = os.lstat(self.path).st_ino
        return listener

    def present(self) -> bool:
        """Whether the path is still a socket: cleaners of temporary folders remove such files."""
        try:
            return stat.S_ISSOCK(os.lstat(self.path).st_mode)
        except OSError:
            return False

    def release(self) -> None:
        """Remove the socket file, if it is ours, and give up the lock."""
        with contextlib.suppress(OSError):
            if os.lstat(self.path).st_ino == self._inode:
                self.path.unlink()
        os.close(self._lock)

    def _remove_stale(self) -> None:
        """Unlink what lies at the path, if it is a socket that nobody answers at."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise SocketPathInvalid(f"{self.path} exists and is no socket; choose another path with --socket")
        try:
            connection = try_connect(self.path)
        except NoDaemon as error:
            # Only a refusal says that nobody listens: a socket of another kind or user cannot be connected to either.
            if isinstance(error.__context__, FileNotFoundError | ConnectionRefusedError):
                self.path.unlink(missing_ok=True)
                return
            connection = None
        if connection is not None:
            connection.close()
        raise SocketInUse(f"another program listens at {self.path}; choose another path with --socket", pid=0)


def _make_private_folder(folder: Path) -> None:
    """Make `folder` for this user alone. Raises `SocketPathInvalid` if somebody else could put sockets there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise SocketPathInvalid(f"cannot use {folder} for the socket: {error.strerror}") from None
    if status.st_uid not in (os.getuid(), 0):
        raise SocketPathInvalid(f"{folder} belongs to user {status.st_uid}, not to you; choose another with --socket")
