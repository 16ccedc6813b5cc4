"""The driver's end of its connection to the kernel: a child process with one socket to its parent.

The main function of a driver calls it. It ends the driver's process as soon as the kernel ends, and never touches a
model.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from ipc.codec import ENCODER, decoder
from ipc.errors import brief, to_wire
from ipc.frames import MAX_FRAME, FrameDecoder, frame, too_large
from kernel.drivers.protocol import FromDriver, SequenceFailed, ToDriver

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the operating system kill this process when `parent`, the pid of its parent, ends (Linux).

    On other systems this does nothing: there the driver ends when it reads the end of file from its socket.
    """
    try:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except AttributeError:
        return
    if os.getppid() != parent:
        os._exit(0)


def _framed(message: FromDriver) -> bytes:
    """The frame of `message`. An answer that is too large for a frame becomes an error of its sequence."""
    payload = ENCODER.encode(message)
    sequence = getattr(message, "sequence", None)
    if len(payload) > MAX_FRAME and sequence is not None:
        error = too_large("the answer to this call", len(payload), MAX_FRAME, "ask for less in one call")
        payload = ENCODER.encode(SequenceFailed(sequence, to_wire(error)))
    return frame(payload)


class KernelLink:
    """The connection to the kernel, for a driver that runs a blocking step loop.

    A reader thread passes each message of the kernel through `prepare` and puts the result into `inbox`. A message that
    cannot be read, or at which `prepare` raises, fails its sequence and no other. `send` writes immediately. When the
    kernel closes its end of the socket, the process exits, even in the middle of a step.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self._connection = connection
        self._lock = threading.Lock()
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.prepare: Callable[[ToDriver], Any] = lambda message: message
        threading.Thread(target=self._read, name="kernel-link", daemon=True).start()

    def send(self, *messages: FromDriver) -> None:
        """Write `messages` in one call of the system. Exits the process if the kernel has closed the connection."""
        data = b"".join(map(_framed, messages))
        try:
            with self._lock:
                self._connection.sendall(data)
        except OSError:
            os._exit(0)

    def _refuse(self, payload: bytes, error: Exception) -> None:
        """Answer a message that cannot be read: its sequence fails, and the others continue."""
        print(f"a message of the kernel cannot be read: {brief(error)}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            sequence = decoder(dict[str, Any]).decode(payload)["sequence"]
            self.send(SequenceFailed(sequence, to_wire(error)))

    def _read(self) -> None:
        frames = FrameDecoder()
        decode = decoder(ToDriver).decode
        try:
            while data := self._connection.recv(1 << 20):
                for payload in frames.feed(data):
                    try:
                        message = self.prepare(decode(payload))
                    except Exception as error:
                        self._refuse(payload, error)
                    else:
                        self.inbox.put(message)
        finally:
            os._exit(0)
