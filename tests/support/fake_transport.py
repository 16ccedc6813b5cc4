"""A transport that records what a connection does with it, for tests of connections without sockets.

It never calls its protocol: the test does, in the place of the loop.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ipc.frames import FrameDecoder


class FakeTransport(asyncio.Transport):
    """Collects writes. `unread`: bytes that the peer has not read."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.unread = 0
        self.log: list[str] = []
        self.closing = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.log.append("close")
        self.closing = True

    def abort(self) -> None:
        self.log.append("abort")
        self.closing = True

    def pause_reading(self) -> None:
        self.log.append("pause reading")

    def resume_reading(self) -> None:
        self.log.append("resume reading")


def payloads(transport: FakeTransport) -> list[bytes]:
    """The payloads of all frames that were written."""
    return list(FrameDecoder().feed(b"".join(transport.writes)))
