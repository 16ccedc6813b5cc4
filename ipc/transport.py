"""Frames over an asyncio transport: one write per loop turn, bounded buffers, and a peer that does not read is cut off.

The base of the daemon's connections, the asynchronous client and the kernel's links to drivers. It never decodes a
payload: that is for `frame_received` of the class below it.
"""

from __future__ import annotations

import asyncio
from typing import cast

from ipc.errors import LlmosError, SlowReader
from ipc.frames import HEADER, MAX_FRAME, FrameDecoder

PACK = HEADER.pack
MAX_UNREAD = 64 * 1024 * 1024  # bytes written to a peer that it has not taken


class FramedProtocol(asyncio.Protocol):
    """One connection. Subclasses override `frame_received`, `broken` and `closed`."""

    def __init__(self, *, frame_limit: int = MAX_FRAME, unread_limit: int = MAX_UNREAD) -> None:
        self._frames = FrameDecoder(frame_limit)
        self._unread_limit = unread_limit
        self._out: list[bytes] = []
        self._corked = False
        self._over = False  # nothing that comes from now on is looked at
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None

    def frame_received(self, payload: bytes) -> None:
        """Called with each complete payload, in order."""
        raise NotImplementedError

    def broken(self, error: LlmosError) -> None:
        """The peer broke the frames or does not read; the connection is aborted right after this."""

    def closed(self) -> None:
        """The connection is gone, whoever ended it. Called once."""

    def send_frame(self, payload: bytes) -> None:
        """Queue one frame; everything queued in one turn of the loop is written together."""
        out = self._out
        if not out and not self._corked:
            self._loop.call_soon(self.flush)
        out += (PACK(len(payload)), payload)

    def flush(self) -> None:
        """Write what is queued."""
        out, transport = self._out, self.transport
        if not out:
            return
        self._out = []
        if transport is None or transport.is_closing():
            return
        transport.write(b"".join(out))
        unread = transport.get_write_buffer_size()
        if unread > self._unread_limit:
            self.broken(SlowReader(f"{unread} bytes written were never read; the connection is cut", unread=unread))
            self._over = True
            transport.abort()

    def close(self) -> None:
        """Write what is queued, then close."""
        self._over = True
        self.flush()
        if self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport that asyncio has opened."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take the frames that are complete, and write what they were answered in one go."""
        self._corked = not self._out
        try:
            for payload in self._frames.feed(data):
                if self._over:
                    return
                self.frame_received(payload)
        except LlmosError as error:
            self.broken(error)
            self.close()
        finally:
            if self._corked:
                self._corked = False
                self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop what is queued: asyncio has closed the transport."""
        self.transport = None
        self._over = True
        self._out = []
        self.closed()
