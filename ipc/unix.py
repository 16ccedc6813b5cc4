"""Unix sockets: the default path of the daemon's socket, one attempt to connect, and the user at the other end.

Used by the daemon and by both clients. It never retries: it reports a full backlog, and the caller may try again.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from ipc.errors import NoDaemon, SocketPathInvalid

MAX_PATH = 107  # bytes, sun_path of Linux without its final zero


def default_socket() -> Path:
    """`$LLMOSD_SOCKET`, else `$XDG_RUNTIME_DIR/llmosd.sock`, else `/tmp/llmosd-UID/llmosd.sock`."""
    if named := os.environ.get("LLMOSD_SOCKET"):
        return Path(named)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "llmosd.sock"
    return Path(f"/tmp/llmosd-{os.getuid()}/llmosd.sock")


def is_named() -> bool:
    """Whether the environment names the default socket, so that it is the user's choice."""
    return bool(os.environ.get("LLMOSD_SOCKET"))


def check_path(path: Path) -> None:
    """Raises `SocketPathInvalid` for a path that the operating system would truncate or refuse."""
    length = len(os.fsencode(path))
    if length > MAX_PATH:
        raise SocketPathInvalid(
            f"the socket path has {length} bytes, and the limit is {MAX_PATH}: {path}. Choose a shorter one with "
            "--socket or LLMOSD_SOCKET",
            length=length,
        )


def try_connect(path: Path) -> socket.socket | None:
    """A connected, non-blocking socket; None if the daemon's backlog is full. Raises `NoDaemon`, `SocketPathInvalid`.

    A connected socket may still wait in the backlog. Only a `Welcome` proves that the daemon serves the connection.
    If nobody listens at `path`, the error has `vacant` in its data.
    """
    check_path(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        connection.connect(str(path))
    except BlockingIOError:
        connection.close()
        return None
    except (FileNotFoundError, ConnectionRefusedError) as error:
        connection.close()
        raise NoDaemon(
            f"no daemon at {path} ({error.strerror}); start one with: llmosd &", socket=str(path), vacant=True
        ) from None
    except OSError as error:
        connection.close()
        raise NoDaemon(f"cannot connect to {path}: {error.strerror}", socket=str(path)) from None
    return connection


def peer_uid(connection: socket.socket | None) -> int | None:
    """The user id at the other end of a Unix socket; None where the system does not report it (only Linux does)."""
    option = getattr(socket, "SO_PEERCRED", None)
    if connection is None or option is None:
        return None
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    return int(uid)
