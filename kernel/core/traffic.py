"""Bounds the memory of all connections together: frames that arrive, requests in flight, and bytes that nobody reads.

Each connection reports to it. It lets large frames in one after another, refuses requests, and closes the connections
that hold most for too long. It knows nothing of calls and processes, and never reads or writes.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from ipc.errors import Busy, LlmosError, SlowReader, SlowWriter
from ipc.frames import MAX_FRAME

MIB = 1024 * 1024
SMALL_FRAME = 64 * 1024  # bytes of a frame that need not wait for its turn
MAX_LARGE = 8 * (MAX_FRAME + 4)  # bytes of all large frames that are arriving; another one waits for its turn
MAX_SMALL = 64 * MIB  # the same for small frames
MAX_WAITING = 256  # frames that wait for their turn
FRAME_SECONDS = 30  # in which a frame must be complete, once its turn has come
CONTENDED_SECONDS = 10  # the same for a large frame while another one waits for its turn,
IDLE_SECONDS = 3  # or without any progress
MAX_IN_FLIGHT = 256 * MIB  # bytes of all requests that wait for an answer
FAIR_SHARE = MIB  # bytes of such requests that every connection may have, however many others have
REQUEST_SIZE = 1024  # counted for each such request besides its frame
MAX_UNREAD = 256 * MIB  # bytes that all clients together may leave unread for long
MAX_BURST = 4 * MAX_UNREAD  # the same for a moment: many clients that read at once can get large answers together
UNREAD_SECONDS = 5  # in which a client must have caught up while all have left too much unread


class Peer(Protocol):
    """A connection, as it is seen here."""

    @property
    def held(self) -> bool:
        """Whether the daemon does not read from it now."""

    @property
    def arrived(self) -> int:
        """The bytes of its incomplete frame that have arrived."""

    def await_turn(self) -> None:
        """Read no more until `take_turn`."""

    def take_turn(self) -> None:
        """Read the frame that waits."""

    def refuse(self, error: LlmosError) -> None:
        """Send `error`, and close the connection."""

    def cut(self, error: LlmosError) -> None:
        """End the connection without a last word: it would not be read."""

    def unread(self) -> int:
        """The bytes that the client has not read."""


class _Arriving:
    """A frame that is arriving: its size, for how many seconds, and for how many of them it has made no progress."""

    __slots__ = ("arrived", "idle", "seconds", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.seconds = self.idle = 0
        self.arrived = 0  # bytes

    def passed_second(self, arrived: int) -> None:
        """Another second has passed, and `arrived` bytes have arrived so far."""
        self.seconds += 1
        self.idle = 0 if arrived > self.arrived else self.idle + 1
        self.arrived = arrived

    def is_late(self, contended: bool) -> bool:
        """Whether it has had its time, which is shorter if another frame waits."""
        if contended and self.size > SMALL_FRAME:
            return self.seconds >= CONTENDED_SECONDS or self.idle >= IDLE_SECONDS
        return self.seconds >= FRAME_SECONDS


class Traffic:
    """The sums over all connections. Times are counted in ticks, so that a pause of the whole daemon is no delay."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arriving: dict[Peer, _Arriving] = {}  # the oldest first
        self._waiting: dict[Peer, int] = {}  # frames that wait for their turn: their sizes, in the order of arrival
        self._unread: dict[Peer, int] = {}  # of slow readers, when they were last written to
        self._behind: dict[Peer, int] = {}  # for how many seconds they have been behind while all had too much unread
        self._timer: asyncio.TimerHandle | None = None
        self.large = self.small = 0  # bytes of large and small frames that are arriving
        self.in_flight = 0
        self.unread = 0

    # ---- frames that arrive

    def frame_begun(self, peer: Peer, size: int) -> None:
        """A frame of `size` bytes arrives at `peer`, or with 0: none does any more."""
        self._frame_over(peer)
        if not size:
            return
        if self._has_room(size) and (size <= SMALL_FRAME or not self._waiting):
            self._arriving[peer] = _Arriving(size)
            self._count(size)
        elif len(self._waiting) < MAX_WAITING:
            self._waiting[peer] = size
            peer.await_turn()
        else:
            self._loop.call_soon(peer.refuse, _too_much_input())  # not now: the connection is handling what it read
        self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(1.0, self._tick)

    def _has_room(self, size: int) -> bool:
        return self.small + size <= MAX_SMALL if size <= SMALL_FRAME else self.large + size <= MAX_LARGE

    def _count(self, size: int, sign: int = 1) -> None:
        if size <= SMALL_FRAME:
            self.small += sign * size
        else:
            self.large += sign * size

    def _frame_over(self, peer: Peer) -> None:
        """The frame of `peer`, if one was arriving, is complete or given up: let others in."""
        if self._waiting.pop(peer, None) is None:
            frame = self._arriving.pop(peer, None)
            if frame is None:
                return
            self._count(frame.size, -1)
        while self._waiting:
            smallest = min(self._waiting, key=self._waiting.__getitem__)  # of equal ones, the first
            if not self._has_room(size := self._waiting[smallest]):
                break
            del self._waiting[smallest]
            self._arriving[smallest] = _Arriving(size)
            self._count(size)
            self._loop.call_soon(smallest.take_turn)

    def _tick(self) -> None:
        """A second has passed. Refuse the peers whose frames have taken too long, the oldest first.

        Cut those that have been behind for too long, the largest first, while all have too much unread.
        """
        self._timer = None
        for peer, frame in tuple(self._arriving.items()):
            if peer.held and not self._waiting:
                continue  # the client does not read, so the daemon does not either
            frame.passed_second(peer.arrived)
            if frame.is_late(bool(self._waiting)) and self._arriving.get(peer) is frame:
                self._frame_over(peer)
                peer.refuse(
                    SlowWriter(
                        f"a frame of {frame.size} bytes was not complete after {frame.seconds} s; send it in one go",
                        size=frame.size,
                        seconds=frame.seconds,
                    )
                )
        if self.unread > MAX_UNREAD:
            for peer in self._unread:
                self._behind[peer] = self._behind.get(peer, 0) + 1
            self._cut_the_largest(MAX_UNREAD, UNREAD_SECONDS)
        if self._arriving or self._waiting or self.unread > MAX_UNREAD:
            self._start_timer()

    # ---- requests in flight

    def check_request(self, held: int, size: int) -> None:
        """Raise `Busy` if all requests in flight are too large for another one.

        `size` is that of the new request, and `held` that of the other requests of its connection.
        """
        if self.in_flight + size > MAX_IN_FLIGHT and held + size > FAIR_SHARE:
            raise Busy(
                f"the unanswered requests of all connections have {self.in_flight} bytes, and the limit is "
                f"{MAX_IN_FLIGHT}; wait for answers",
                retry_after=1.0,
            )

    # ---- unread bytes

    def left_unread(self, peer: Peer, size: int) -> None:
        """`peer` has `size` bytes unread after a write; 0: it has caught up. May cut the peer that has most unread."""
        self.unread += size - self._unread.pop(peer, 0)
        if not size:
            self._behind.pop(peer, None)
            return
        self._unread[peer] = size
        if self.unread > MAX_UNREAD:
            self._start_timer()
            if self.unread > MAX_BURST:
                self._cut_the_largest(MAX_BURST, 0)

    def _cut_the_largest(self, limit: int, seconds: int) -> None:
        """Cut peers that have been behind for `seconds`, until all together have at most `limit` bytes unread."""
        self._unread = {peer: peer.unread() for peer in self._unread}  # some have read since they were written to
        self.unread = sum(self._unread.values())
        late = sorted(
            (peer for peer in self._unread if self._behind.get(peer, 0) >= seconds), key=self._unread.__getitem__
        )
        while late and self.unread > limit:
            slowest = late.pop()
            left = self._unread.pop(slowest)
            self._behind.pop(slowest, None)
            self.unread -= left
            slowest.cut(_too_much_output(left))

    def connection_ended(self, peer: Peer) -> None:
        """Forget `peer`."""
        self._frame_over(peer)
        self.left_unread(peer, 0)


def _too_much_input() -> Busy:
    return Busy("too many large frames arrive at the same time; try again", retry_after=1.0)


def _too_much_output(unread: int) -> SlowReader:
    return SlowReader(
        f"all clients together left more than {MAX_UNREAD} bytes unread; this one left the most, {unread}, so it was "
        "cut off",
        unread=unread,
    )
