"""Frames divide a byte stream into payloads: `u32 length, little endian | payload`.

Used by every transport, blocking or not. It does no I/O and never looks into a payload.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ipc.errors import FrameTooLarge

HEADER = struct.Struct("<I")
MAX_FRAME = 16 * 1024 * 1024  # bytes of payload


def frame(payload: bytes) -> bytes:
    """`payload` with its header."""
    return HEADER.pack(len(payload)) + payload


def too_large(what: str, length: int, limit: int, advice: str = "put large data into a file") -> FrameTooLarge:
    """The error for `what`, of `length` bytes, which cannot be sent because a frame holds at most `limit` bytes."""
    return FrameTooLarge(
        f"{what} has {length} bytes, and a frame holds at most {limit}; {advice}",
        length=length,
        limit=limit,
    )


class FrameDecoder:
    """Cuts a stream of bytes, fed in pieces of any size, into the payloads of its frames.

    `limit`: the most bytes of a payload. `incomplete`: the length of the frame that has begun and is not complete, with
    its header; 0 if there is none. `changed` is set whenever such a frame has begun or ended; the owner resets it.
    """

    __slots__ = ("_buffer", "changed", "incomplete", "limit")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self.limit = limit
        self.incomplete = 0
        self.changed = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each payload that `data` completes. Raises `FrameTooLarge` at a header above `limit`.

        After this error, close the connection: the beginning of the next frame is unknown.
        """
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < 4:
                return
            # Wait until the frame is complete. Otherwise a frame larger than one read would be copied at each read.
            length = HEADER.unpack_from(buffer)[0]
            if length > self.limit:
                raise self._too_long(length)
            if len(buffer) - 4 < length:
                if self.incomplete != length + 4:  # its header is complete now
                    self.incomplete, self.changed = length + 4, True
                return
            with memoryview(buffer) as view:
                payload, data = bytes(view[4 : length + 4]), bytes(view[length + 4 :])
            buffer.clear()
            self.incomplete, self.changed = 0, True
            yield payload
        position, end = 0, len(data)
        while end - position >= 4:
            (length,) = HEADER.unpack_from(data, position)
            if length > self.limit:
                raise self._too_long(length)
            start = position + 4
            if end - start < length:
                break
            position = start + length
            yield data[start:position]
        if position < end:
            buffer += data[position:]
            self.incomplete, self.changed = (length + 4 if end - position >= 4 else 4), True

    def _too_long(self, length: int) -> FrameTooLarge:
        return FrameTooLarge(
            f"a frame of {length} bytes exceeds the limit of {self.limit}; send smaller frames",
            length=length,
            limit=self.limit,
        )

    @property
    def pending(self) -> int:
        """The number of bytes received so far of an incomplete frame."""
        return len(self._buffer)
