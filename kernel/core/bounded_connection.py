"""A framed connection of a client that reports to `Traffic` what it holds: the base of `kernel.connection.Connection`.

It pauses reading while the client leaves answers unread, and while a large frame waits for its turn. It knows nothing
of requests but their sizes, and never decodes a frame.
"""

from __future__ import annotations

from ipc.errors import Busy, LlmosError
from ipc.transport import FramedProtocol
from kernel.core.traffic import REQUEST_SIZE, Traffic

MAX_IN_FLIGHT = 128 * 1024 * 1024  # bytes of the unanswered requests of one connection

# Reasons for which a connection reads nothing: the client leaves answers unread, a large frame waits for its turn, and
# the kernel has not read the journal.
UNREAD, TURN, NOT_OPEN = 1, 2, 4


class BoundedConnection(FramedProtocol):
    """Reports to `Traffic`, which may pause or end it. Subclasses override `frame_received`, `broken` and `closed`."""

    def __init__(self, traffic: Traffic, frame_limit: int) -> None:
        super().__init__(frame_limit=frame_limit)
        self._traffic = traffic
        self._in_flight = 0  # the bytes of its unanswered requests

    def refuse(self, error: LlmosError) -> None:
        """Send `error`, and close the connection."""
        self.broken(error)
        self.close()

    def pause_writing(self) -> None:
        # A peer that does not read its answers may not send more requests. Only the daemon's end of a connection stops
        # reading: if both ends did, each would wait until the other reads.
        self.hold(UNREAD)

    def resume_writing(self) -> None:
        self._traffic.left_unread(self, 0)
        self.release(UNREAD)

    def frame_begun(self, size: int) -> None:
        self._traffic.frame_begun(self, size)

    def behind(self, unread: int) -> None:
        super().behind(unread)
        if not self._closing:
            self._traffic.left_unread(self, unread)

    @property
    def arrived(self) -> int:
        return self._frames.pending

    def await_turn(self) -> None:
        self.hold(TURN)

    def take_turn(self) -> None:
        self.release(TURN)

    def unread(self) -> int:
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def check_request(self, size: int) -> None:
        """Raise `Busy` if a request of `size` bytes is too large beside the requests in flight."""
        if self._in_flight + size > MAX_IN_FLIGHT:
            raise Busy(
                f"the unanswered requests of this connection have {self._in_flight} bytes, and the limit is "
                f"{MAX_IN_FLIGHT}; wait for answers",
                retry_after=1.0,
            )
        self._traffic.check_request(self._in_flight, size)

    def request_begun(self, size: int) -> None:
        """A request of `size` bytes waits for its answer."""
        self._in_flight += size + REQUEST_SIZE
        self._traffic.in_flight += size + REQUEST_SIZE

    def request_over(self, size: int) -> None:
        """Undo `request_begun`."""
        self._in_flight -= size + REQUEST_SIZE
        self._traffic.in_flight -= size + REQUEST_SIZE

    def closed(self) -> None:
        self._traffic.connection_ended(self)
