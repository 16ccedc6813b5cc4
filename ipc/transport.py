"""Frames over an asyncio transport. Makes one write per turn of the loop, and cuts off a peer that does not read.

The base of the daemon's connections, the asynchronous client and the kernel's links to drivers. It never decodes a
payload: subclasses do, in `frame_received`.
"""

from __future__ import annotations

import asyncio
from typing import cast

from ipc.errors import LlmosError, SlowReader
from ipc.frames import HEADER, MAX_FRAME, FrameDecoder

PACK = HEADER.pack
MAX_UNREAD = 64 * 1024 * 1024  # bytes sent that the peer has not read


class FramedProtocol(asyncio.Protocol):
    """One connection. Subclasses override `frame_received`, `broken` and `closed`."""

    def __init__(self, *, frame_limit: int = MAX_FRAME, unread_limit: int = MAX_UNREAD) -> None:
        self._frames = FrameDecoder(frame_limit)
        self._unread_limit = unread_limit
        self._out: list[bytes] = []
        self._corked = False
        self._closing = False  # once True, arriving frames are ignored
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None

    def frame_received(self, payload: bytes) -> None:
        """Called with each complete payload, in order. Subclasses must override it."""
        raise NotImplementedError

    def broken(self, error: LlmosError) -> None:
        """Called when the peer sent a broken frame or left too much unread. The connection then closes."""

    def closed(self) -> None:
        """Called once, when the connection has ended for any reason."""

    def send_frame(self, payload: bytes) -> None:
        """Queue one frame. All frames that are queued in one turn of the loop go out in one write."""
        out = self._out
        if not out and not self._corked:
            self._loop.call_soon(self.flush)
        out += (PACK(len(payload)), payload)

    def flush(self) -> None:
        """Write all queued frames. A peer that has left too many bytes unread is cut off with `SlowReader`."""
        out, transport = self._out, self.transport
        if not out:
            return
        self._out = []
        if transport is None or transport.is_closing():
            return
        transport.write(b"".join(out))
        unread = transport.get_write_buffer_size()
        if unread > self._unread_limit:
            self.broken(SlowReader(f"the peer left {unread} bytes unread, so it was cut off", unread=unread))
            self._closing = True
            transport.abort()

    def close(self) -> None:
        """Write all queued frames, then close the connection."""
        self._closing = True
        self.flush()
        if self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport that asyncio opened."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Handle all complete frames, then send their answers in one write."""
        self._corked = not self._out
        try:
            for payload in self._frames.feed(data):
                if self._closing:
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
        """Drop all queued frames: asyncio has closed the transport."""
        self.transport = None
        self._closing = True
        self._out = []
        self.closed()
