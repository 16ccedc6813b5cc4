"""Frames over an asyncio transport. Joins the writes of a turn of the loop, and cuts off a peer that does not read.

The base of the daemon's connections, the asynchronous client and the kernel's links to drivers. It never decodes a
payload: subclasses do, in `frame_received`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import chain
from typing import cast

from ipc.errors import LlmosError, SlowReader
from ipc.frames import HEADER, MAX_FRAME, FrameDecoder

PACK = HEADER.pack
MAX_UNREAD = 64 * 1024 * 1024  # bytes sent that the peer has not read
BEHIND = 64 * 1024  # unread bytes from which a peer counts as slow; transports call `pause_writing` at this size, too
JOINED = 256  # headers and payloads that are written together while a read is handled
LINGER = 10.0  # seconds in which a peer can read the last frames of a connection that this end has closed


class FramedProtocol(asyncio.Protocol):
    """One connection. Subclasses override `frame_received`, `broken` and `closed`."""

    def __init__(self, *, frame_limit: int = MAX_FRAME, unread_limit: int = MAX_UNREAD) -> None:
        self._frames = FrameDecoder(frame_limit)
        self._rest: Iterator[bytes] | None = None  # frames that arrived before reading was paused
        self._held = 0  # the reasons for which reading is paused, as a set of bits
        self._unread_limit = unread_limit
        self._slow_from = min(BEHIND, unread_limit)
        self._out: list[bytes] = []
        self._corked = False
        self._closing = False  # once True, arriving frames are ignored
        self._linger: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None

    def frame_received(self, payload: bytes) -> None:
        """Called with each complete payload, in order. Subclasses must override it."""
        raise NotImplementedError

    def frame_begun(self, size: int) -> None:
        """Called when the first part of a frame of `size` bytes has arrived, and with 0 when no frame is incomplete."""

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
        if unread > self._slow_from:
            self.behind(unread)

    def behind(self, unread: int) -> None:
        """Called after each write to a peer with more than `BEHIND` bytes unread. Cuts it off at its limit."""
        if unread > self._unread_limit:
            self.cut(SlowReader(f"the peer left {unread} bytes unread, so it was cut off", unread=unread))

    def cut(self, error: LlmosError) -> None:
        """End the connection now. The peer gets nothing that it has not read yet."""
        self.broken(error)
        self._closing = True
        self._rest = None
        if self.transport is not None:
            self.transport.abort()

    @property
    def held(self) -> bool:
        """Whether reading is paused."""
        return self._held != 0

    def hold(self, reason: int) -> None:
        """Read no more until `release` was called with the same `reason`, a power of 2, and handle no more frames."""
        if not self._held and self.transport is not None:
            self.transport.pause_reading()
        self._held |= reason

    def release(self, reason: int) -> None:
        """Undo `hold`. Handles the frames that arrived before it, and reads on if there is no other reason not to."""
        if not self._held & reason:
            return
        self._held &= ~reason
        if self._held or self.transport is None or self.transport.is_closing():
            return
        if self._rest is not None:
            self.data_received(b"")
        if not self._held and not self._closing:
            self.transport.resume_reading()

    def close(self) -> None:
        """Write all queued frames, then close the connection, at the latest after `LINGER` seconds."""
        self._closing = True
        self._rest = None
        self._frames = FrameDecoder(self._frames.limit)  # gives back the memory of an incomplete frame
        self.flush()
        if self.transport is not None:
            self.transport.close()
            if self._linger is None and self.transport.get_write_buffer_size():
                self._linger = self._loop.call_later(LINGER, self.transport.abort)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport that asyncio opened."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Handle all complete frames, then send their answers in one write, or in several if there are many."""
        frames = self._frames
        payloads = frames.feed(data) if self._rest is None else self._take_rest(data)
        self._corked = not self._out
        try:
            for payload in payloads:
                if self._closing:
                    return
                self.frame_received(payload)
                if len(self._out) >= JOINED:
                    self.flush()
                if self._held:
                    self._rest = payloads
                    break
            if frames.changed:
                frames.changed = False
                self.frame_begun(frames.incomplete)
        except LlmosError as error:
            self.broken(error)
            self.close()
        finally:
            if self._corked:
                self._corked = False
                self.flush()

    def _take_rest(self, data: bytes) -> Iterator[bytes]:
        """The frames that were not handled yet, and then those of `data`."""
        rest, self._rest = self._rest, None
        return self._frames.feed(data) if rest is None else chain(rest, self._frames.feed(data))

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop all queued frames: asyncio has closed the transport."""
        self.transport = None
        self._closing = True
        self._out = []
        self._rest = None
        if self._linger is not None:
            self._linger.cancel()
        self.closed()
