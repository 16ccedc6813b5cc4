"""The listening socket of the daemon. A lock on its path keeps other daemons from using the same path.

Used only by the daemon. A stale socket file never prevents a start, and a start never disturbs a running daemon.
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
    """The lock on a socket path, held for the whole run of the daemon, and the socket bound there.

    `activated` is a listening socket that systemd opened. Its file belongs to systemd and is never removed.
    """

    def __init__(self, path: Path, activated: socket.socket | None = None) -> None:
        """Lock the path. Raises `SocketInUse` with the pid of the daemon that holds it, and `SocketPathInvalid`."""
        if activated is not None:
            path = Path(activated.getsockname())
        check_path(path)
        self.path = path
        self.activated = activated
        self._inode: int | None = None  # of the socket file that this daemon made
        _make_private_folder(path.parent)
        self.lock_path = lock = path.with_name(path.name + ".lock")
        try:
            self._lock = lockfile.take(lock)
        except lockfile.LockHeld as error:
            raise SocketInUse(
                f"a daemon with pid {error.pid or 'unknown'} already serves {path}; stop it with `llmos shutdown`, or "
                "choose another path with --socket",
                pid=error.pid,
            ) from None
        except OSError as error:
            raise SocketPathInvalid(
                f"cannot write {lock}: {error.strerror}; choose another path with --socket"
            ) from None

    def bind(self) -> socket.socket:
        """Bind and return the socket. Removes a stale socket file. Raises `SocketInUse` or `SocketPathInvalid`."""
        if self.activated is not None:
            return self.activated
        self._remove_stale()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        old = os.umask(0o777 & ~lockfile.OWNER_ONLY)
        try:
            listener.bind(str(self.path))
        except OSError as error:
            listener.close()
            raise SocketPathInvalid(
                f"cannot listen at {self.path}: {error.strerror}; choose another path with --socket"
            ) from None
        finally:
            os.umask(old)
        listener.listen(BACKLOG)
        self._inode = os.lstat(self.path).st_ino
        return listener

    def exists(self) -> bool:
        """Whether the socket file still exists. Programs that clean temporary folders may remove it."""
        try:
            return stat.S_ISSOCK(os.lstat(self.path).st_mode)
        except OSError:
            return False

    def release(self) -> None:
        """Remove the socket file if this daemon made it, and release the lock."""
        with contextlib.suppress(OSError):
            if os.lstat(self.path).st_ino == self._inode:
                self.path.unlink()
        os.close(self._lock)

    def _remove_stale(self) -> None:
        """Remove the socket file at the path if no program listens there. Raises `SocketInUse` if a program listens."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise SocketPathInvalid(f"{self.path} exists and is no socket; choose another path with --socket")
        try:
            connection = try_connect(self.path)
        except NoDaemon as error:
            # Only a refused connection proves that no program listens: connecting also fails for other users and types.
            if isinstance(error.__context__, FileNotFoundError | ConnectionRefusedError):
                self.path.unlink(missing_ok=True)
                return
            connection = None
        if connection is not None:
            connection.close()
        raise SocketInUse(f"another program listens at {self.path}; choose another path with --socket", pid=0)


def _make_private_folder(folder: Path) -> None:
    """Make `folder`, accessible only to this user, if it is missing. Raises `SocketPathInvalid` if another owns it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise SocketPathInvalid(
            f"cannot use {folder} for the socket: {error.strerror}; choose another with --socket"
        ) from None
    if status.st_uid not in (os.getuid(), 0):
        raise SocketPathInvalid(f"{folder} belongs to user {status.st_uid}, not to you; choose another with --socket")
