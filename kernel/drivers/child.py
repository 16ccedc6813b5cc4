"""The driver's side of its life: started by the kernel as a child process, joined to it by one socket.

Called by every driver's main. It ends the process when the kernel does, and never touches a model.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from ipc.codec import ENCODER, decoder
from ipc.frames import FrameDecoder, frame
from kernel.drivers.protocol import FromDriver, ToDriver

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the operating system kill this process when its parent, process `parent`, ends (Linux).

    Elsewhere the end of file on the socket does it, at the next read.
    """
    try:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except AttributeError:
        return
    if os.getppid() != parent:
        os._exit(0)


class KernelLink:
    """The connection to the kernel, for a driver that runs a blocking step loop.

    A reader thread files what the kernel says into `inbox`, as `prepare` makes of it, which must not raise; `send`
    writes at once. When the kernel closes its end the
    process exits, whatever the step loop does.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self._connection = connection
        self._lock = threading.Lock()
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.prepare: Callable[[ToDriver], Any] = lambda message: message
        threading.Thread(target=self._read, name="kernel-link", daemon=True).start()

    def send(self, *messages: FromDriver) -> None:
        """Write `messages` in one go. Exits the process if the kernel is gone."""
        data = b"".join(frame(ENCODER.encode(message)) for message in messages)
        try:
            with self._lock:
                self._connection.sendall(data)
        except OSError:
            os._exit(0)

    def _read(self) -> None:
        frames = FrameDecoder()
        decode = decoder(ToDriver).decode
        try:
            while data := self._connection.recv(1 << 20):
                for payload in frames.feed(data):
                    self.inbox.put(self.prepare(decode(payload)))
        finally:
            os._exit(0)
