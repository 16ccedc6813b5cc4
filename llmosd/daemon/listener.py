"""The listening socket of the daemon. A lock on its path keeps other daemons from using the same path.

Used only by the daemon. The socket file appears when the daemon listens, and not before. A stale socket file never
prevents a start, and a start never disturbs a running daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from ipc.daemon_lock import lock_path
from ipc.errors import NoDaemon, SocketInUse, SocketPathInvalid
from ipc.unix import MAX_PATH, check_path, try_connect
from kernel.lib import lockfile, trust
from kernel.lib.private_files import FILE, make_private

BACKLOG = 1024  # connections that wait until the event loop accepts them; the system may allow fewer (somaxconn)
UNLISTENED = ".new"  # follows the name of a socket at which the daemon does not listen yet

log = structlog.get_logger("llmosd")


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
        self._unlistened = path.with_name(path.name + UNLISTENED)
        self._inode: int | None = None  # of the socket file that this daemon made
        self.lock_path = lock_path(path)
        self._lock: int | None = None
        self._take_lock()

    def _take_lock(self) -> None:
        """Take the lock, unless this daemon holds the lock at the path. Raises as `__init__`."""
        _prepare_folder(self.path.parent, warn=self._lock is None)
        lock = self.lock_path
        with contextlib.suppress(OSError):
            if self._lock is not None and os.path.samestat(os.fstat(self._lock), os.lstat(lock)):
                return
        try:
            taken = lockfile.take(lock)
        except lockfile.LockHeld as error:
            raise SocketInUse(
                f"a daemon with pid {error.pid or 'unknown'} already serves {self.path}; stop it with `llmos "
                "shutdown`, or choose another path with --socket",
                pid=error.pid,
            ) from None
        except OSError as error:
            raise SocketPathInvalid(
                f"cannot write {lock}: {error.strerror}; choose another path with --socket"
            ) from None
        if self._lock is not None:
            os.close(self._lock)
        self._lock = taken

    async def serve(self, protocol: Callable[[], asyncio.BaseProtocol]) -> asyncio.AbstractServer:
        """Listen, and only then let the socket file appear. Raises `SocketInUse` or `SocketPathInvalid`."""
        listener = self.bind()
        try:
            # Without `backlog` the event loop would set its own, 100.
            loop = asyncio.get_running_loop()
            server = await loop.create_unix_server(protocol, sock=listener, backlog=BACKLOG)
        except BaseException:
            listener.close()
            raise
        try:
            self.publish()
        except BaseException:
            server.close()
            raise
        return server

    def bind(self) -> socket.socket:
        """Bind and return the socket, under a name that no client looks for. Removes stale socket files."""
        if self.activated is not None:
            return self.activated
        self._take_lock()  # again, if somebody has removed the folder
        self._remove_stale()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        try:
            with _short_name(self._unlistened) as name:
                listener.bind(name)
            os.chmod(self._unlistened, FILE)  # nobody can connect before it listens
            self._inode = os.lstat(self._unlistened).st_ino
        except OSError as error:
            listener.close()
            raise self._unusable(error) from None
        return listener

    def publish(self) -> None:
        """Give the socket the name at which clients look for it. It must be listening."""
        if self.activated is None:
            try:
                self._unlistened.rename(self.path)
            except OSError as error:
                raise self._unusable(error) from None

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
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _remove_stale(self) -> None:
        """Remove the socket file at the path if no program listens there. Raises `SocketInUse` if a program listens."""
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.lstat(self._unlistened).st_mode):  # of a daemon that died before it listened
                self._unlistened.unlink()
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
            if error.data.get("vacant"):
                self._unlink_stale()
                return
            connection = None
        if connection is not None:
            connection.close()
        raise SocketInUse(f"another program listens at {self.path}; choose another path with --socket", pid=0)

    def _unlink_stale(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:  # in a sticky folder, another user's socket cannot be removed
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> SocketPathInvalid:
        return SocketPathInvalid(f"cannot listen at {self.path}: {error.strerror}; choose another path with --socket")


@contextlib.contextmanager
def _short_name(path: Path) -> Iterator[str]:
    """A name of `path` that fits into the address of a socket: by way of its open folder, if `path` itself is long."""
    if len(os.fsencode(path)) <= MAX_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _prepare_folder(folder: Path, *, warn: bool) -> None:
    """Make `folder`, accessible only to this user, if it is missing. Raises `SocketPathInvalid` if it is unsafe."""
    try:
        # In a sticky folder such as /tmp, others can only take the name first: then the daemon does not start.
        found = trust.findings(folder, sticky=True)
        if not found or not found[0].refused:
            make_private(folder)
    except OSError as error:
        raise SocketPathInvalid(
            f"cannot use {folder} for the socket: {error.strerror}; choose another with --socket"
        ) from None
    for finding in found:
        if finding.refused:
            raise SocketPathInvalid(f"socket: {finding.sentence} with --socket")
        if warn:
            log.warning("other users may interfere with the socket", why=finding.sentence)
