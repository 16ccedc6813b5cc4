"""How a client reaches the daemon at a socket: each attempt to connect, and whom it finds there.

Used by both clients, which repeat `attempt` until it returns a connection. It waits for a daemon that is busy or
starting, but never for one that nobody has started, and it never talks to the program of another user.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ipc.errors import NoDaemon, NotPermitted
from ipc.unix import default_socket, is_named, peer_uid, try_connect
from llmosd.client import bounds
from llmosd.client.bounds import Bound
from llmosd.client.starting import starting

ROOT = 0
BUSY, STARTING = 0.005, 0.05  # seconds until the next attempt


class Dial:
    """The attempts to connect to the daemon at `path`. `bound` is their end; `pause`: seconds until the next one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bound = Bound(bounds.CONNECT_TIMEOUT, self._error)
        self.pause = BUSY
        self.vacant: NoDaemon | None = None  # the error if nobody listened at the last attempt
        self._starting: int | None = None  # the pid of the daemon that was seen last while it was starting

    def attempt(self) -> socket.socket | None:
        """A connected, non-blocking socket; None to try again. Raises `NoDaemon`, `NotPermitted`, `SocketPathInvalid`.

        None means that the daemon's backlog is full, or that a daemon is starting that does not listen yet.
        """
        connection = self.connect()
        if self.vacant is not None:
            self.look()
        return connection

    def connect(self) -> socket.socket | None:
        """Like `attempt`, but it takes no time. If nobody listens, it sets `vacant`, and `look` must follow."""
        try:
            connection = try_connect(self.path)
        except NoDaemon as error:
            if not error.data.get("vacant"):
                raise
            self.vacant = error
            return None
        self.pause, self.vacant, self._starting = BUSY, None, None
        if connection is not None:
            self._check_peer(connection)
        return connection

    def look(self) -> None:
        """Raise `vacant`, unless a daemon is starting that does not listen yet.

        It may read the command lines of all processes, which takes too long for an event loop.
        """
        self._starting = starting(self.path, self._starting or 0)
        if self._starting is None and self.vacant is not None:
            raise self.vacant
        self.pause = STARTING

    def _check_peer(self, connection: socket.socket) -> None:
        """Close the connection and raise `NotPermitted` if another user listens at the socket.

        The program there would read every prompt, and could answer as it likes. Root may use any user's daemon, but
        must name its socket: anyone could have made the default one.
        """
        peer, user = peer_uid(connection), os.geteuid()
        if peer is None or peer in (ROOT, user):
            return
        if user == ROOT and (is_named() or self.path != default_socket()):
            return
        connection.close()
        expected = "not by root" if user == ROOT else "neither by you nor by root"
        raise NotPermitted(
            f"the socket {self.path} is served by user {peer}, {expected}; "
            "name your own daemon's socket with --socket or LLMOSD_SOCKET",
            socket=str(self.path),
            uid=peer,
        )

    def _error(self) -> NoDaemon:
        if self._starting is None:
            return bounds.no_daemon(self.path)
        return NoDaemon(
            f"the daemon with pid {self._starting or 'unknown'} has not begun to listen at {self.path} within "
            f"{self.bound.seconds:g} s; read its log, or end it",
            socket=str(self.path),
        )
