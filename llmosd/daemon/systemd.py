"""The protocols of systemd: takes over a socket that systemd opened, and notifies systemd of the daemon's state.

Used only by the daemon. It has no effect if systemd did not start the daemon. Protocols: sd_listen_fds(3),
sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

from ipc.errors import SocketPathInvalid

FIRST = 3  # the descriptor of the first socket that systemd passes


def activated(environment: MutableMapping[str, str] = os.environ) -> socket.socket | None:
    """The listening socket that systemd passed, if any. Raises `SocketPathInvalid` if it is of a wrong kind."""
    count, pid = (environment.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID"))
    environment.pop("LISTEN_FDNAMES", None)  # child processes must not mistake the sockets for their own
    if pid != str(os.getpid()) or count in ("", "0"):
        return None
    if count != "1":
        raise SocketPathInvalid(f"LISTEN_FDS passed {count} sockets; llmosd listens at one Unix socket")
    os.set_inheritable(FIRST, False)
    try:
        passed = socket.socket(fileno=FIRST)
        listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SocketPathInvalid(f"the descriptor of LISTEN_FDS is no socket: {error.strerror}") from None
    name = passed.getsockname()
    if passed.family != socket.AF_UNIX or not listens or not isinstance(name, str) or not name.startswith("/"):
        raise SocketPathInvalid("the socket of LISTEN_FDS does not listen at the path of a Unix socket")
    passed.setblocking(False)
    return passed


class Notifier:
    """Notifies systemd of the daemon's state. `interval`: seconds between keep-alive messages, 0.0 for none.

    A message that cannot be sent is dropped, so that the daemon never waits.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        path = environment.pop("NOTIFY_SOCKET", "")
        timeout, pid = (environment.pop(name, "") for name in ("WATCHDOG_USEC", "WATCHDOG_PID"))
        for_this_process = pid in ("", str(os.getpid()))
        self.interval = int(timeout) / 2e6 if timeout.isdecimal() and for_this_process else 0.0
        self._socket: socket.socket | None = None
        if path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            self._path = "\0" + path[1:] if path.startswith("@") else path

    def notify(self, *lines: str) -> None:
        """Send assignments such as READY=1. Never waits and never raises."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._path)
