"""What the daemon and systemd tell each other: of a socket that was opened for us, and that we are ready, or stop.

Used by the daemon only. Where systemd did not start us, nothing here does anything. Protocols: sd_listen_fds(3),
sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

from ipc.errors import SocketPathInvalid

FIRST = 3  # the descriptor of the first socket that is passed on


def activated(environment: MutableMapping[str, str] = os.environ) -> socket.socket | None:
    """The listening socket that was opened for this process, if one was. Raises `SocketPathInvalid` for any other."""
    count, pid = (environment.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID"))
    environment.pop("LISTEN_FDNAMES", None)  # programs that we start are not to take them for theirs
    if pid != str(os.getpid()) or count in ("", "0"):
        return None
    if count != "1":
        raise SocketPathInvalid(f"{count} sockets were passed on by LISTEN_FDS; llmosd listens at one Unix socket")
    os.set_inheritable(FIRST, False)
    try:
        passed = socket.socket(fileno=FIRST)
        listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SocketPathInvalid(f"what LISTEN_FDS passed on is no socket: {error.strerror}") from None
    name = passed.getsockname()
    if passed.family != socket.AF_UNIX or not listens or not isinstance(name, str) or not name.startswith("/"):
        raise SocketPathInvalid("what LISTEN_FDS passed on does not listen at the path of a Unix socket")
    passed.setblocking(False)
    return passed


class Notifier:
    """Tells systemd how the daemon is. `beat`: seconds between two signs of life that it wants, 0.0 for none.

    What cannot be told is not: nobody is to wait for that.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        path = environment.pop("NOTIFY_SOCKET", "")
        timeout, pid = (environment.pop(name, "") for name in ("WATCHDOG_USEC", "WATCHDOG_PID"))
        for_us = pid in ("", str(os.getpid()))
        self.beat = int(timeout) / 2e6 if timeout.isdecimal() and for_us else 0.0
        self._socket: socket.socket | None = None
        if path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            self._path = "\0" + path[1:] if path.startswith("@") else path

    def tell(self, *lines: str) -> None:
        """Send assignments such as READY=1. Never waits and never raises."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._path)
