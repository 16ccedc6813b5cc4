"""The names of Unix users, and the user at the other end of a Unix socket.

Connections use it to name the owner of a local client. A lookup may read files or ask a server, so the daemon looks up
its own user before it serves; after that, a name comes from memory.
"""

from __future__ import annotations

import functools
import pwd
import socket
import struct


@functools.lru_cache(maxsize=64)
def user_name(uid: int) -> str:
    """The name of user `uid`, or `uid-1000` if user 1000 has no name."""
    try:
        return pwd.getpwuid(uid).pw_name or f"uid-{uid}"
    except (KeyError, OverflowError):
        return f"uid-{uid}"


def peer_uid(connection: socket.socket | None) -> int | None:
    """The user id at the other end of a Unix socket; None where the system does not report it (only Linux does)."""
    option = getattr(socket, "SO_PEERCRED", None)
    if connection is None or option is None:
        return None
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    return int(uid)
