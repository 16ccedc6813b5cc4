"""The client's side of a connection, without I/O: what goes out, and what becomes of what comes in.

Used by both clients, each of which brings its own way to write, to read and to wait. It encodes requests, files answers
and events under them, grants credit as events are read, and says what the daemon's errors are here.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Generic, TypeVar, cast

import msgspec

from ipc.codec import decode, encode
from ipc.errors import ConnectionLost, LlmosError, from_wire
from ipc.frames import MAX_FRAME, too_large
from ipc.protocol import (
    VERSION,
    Abandon,
    Credit,
    End,
    Failure,
    FromDaemon,
    Hello,
    RawAnswer,
    Request,
    StreamEvent,
    Welcome,
)
from ipc.syscalls import Syscall, SystemCall
from llmosd.client.cursor import is_final

CREDIT = 256  # events that may be on their way to us; half of it read, as much is granted anew
CONNECT_TIMEOUT = 10.0  # seconds for the daemon to take the connection and welcome us


class PendingRequest:
    """A request that was sent, and what has come for it and was not read. `streams`: whether events follow."""

    __slots__ = ("_ended", "_error", "_events", "_read", "_value", "call", "number", "streams")

    def __init__(self, number: int, call: Syscall, streams: bool) -> None:
        self.number = number
        self.call = call
        self.streams = streams
        self._value: msgspec.Raw | None = None
        self._events: deque[StreamEvent] = deque()
        self._read = 0  # events, since credit was last granted
        self._ended = False  # all events have come
        self._error: LlmosError | None = None  # why there is no answer, or no more events

    @property
    def answered(self) -> bool:
        """Whether there is an answer, or a reason why there is none."""
        return self._value is not None or self._error is not None

    @property
    def complete(self) -> bool:
        """Whether nothing more will come."""
        return self._ended if self.streams and self._value is not None else self.answered

    def check(self) -> None:
        """Raises why nothing more will come, if it was cut off."""
        if self._error is not None:
            raise self._error

    @property
    def over(self) -> bool:
        """Whether all events were read."""
        return self._ended and not self._events

    def answer(self) -> Any:
        """The answer, as the type that the call returns. Raises the error of the call."""
        if self._value is None:
            assert self._error is not None
            raise self._error
        return decode(self._value, type(self.call).returns or Any)

    def next(self) -> StreamEvent | None:
        """The next event; None if it has not come yet. Raises the reason if it never will."""
        if self._events:
            self._read += 1
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        return None

    def credit(self) -> bytes | None:
        """What is to be sent now that events were read: leave for more of them, or nothing."""
        if self._read < CREDIT // 2 or self._ended or self._error is not None:
            return None
        read, self._read = self._read, 0
        return encode(Credit(self.number, read))

    def take(self, message: RawAnswer | Failure | StreamEvent | End) -> None:
        """Take a message of the daemon for this request."""
        match message:
            case RawAnswer():
                self._value = message.value
            case StreamEvent() if self.streams:
                self._events.append(message)
                self._ended = is_final(message.event)
            case End():
                self._ended = True
            case Failure():
                self._error = from_wire(message.error)

    def lose(self, error: LlmosError) -> None:
        """The connection is gone: note why nothing more will come, unless all has come."""
        if not self._ended:
            self._error = error


AnyPending = TypeVar("AnyPending", bound=PendingRequest)


class Session(Generic[AnyPending]):
    """The requests of one connection. `kind` is the class of what stands for one while it waits."""

    def __init__(self, kind: type[AnyPending]) -> None:
        self._kind = kind
        self._pending: dict[int, AnyPending] = {}
        self._last_id = 0

    def open(self, call: Syscall, *, streams: bool = False) -> tuple[AnyPending, bytes]:
        """A new request, and what is to be sent for it. Raises `NotEncodable` and `FrameTooLarge`."""
        number = self._last_id + 1
        payload = encode(Request(number, cast("SystemCall", call)))
        if len(payload) > MAX_FRAME:
            raise too_large(f"a {type(call).__name__} with all that it carries", len(payload), MAX_FRAME)
        self._last_id = number
        pending = self._pending[number] = self._kind(number, call, streams)
        return pending, payload

    def take(self, message: FromDaemon) -> AnyPending | None:
        """File what came; the request that it is for, unless nobody wants it any more.

        Raises the error that ends the connection as a whole, if it is one.
        """
        if isinstance(message, Welcome):
            return None
        if isinstance(message, Failure) and message.id == 0:
            raise from_wire(message.error)
        pending = self._pending.get(message.id)
        if pending is not None:
            pending.take(message)
            if pending.complete:
                del self._pending[message.id]
        return pending

    def abandon(self, pending: AnyPending) -> bytes | None:
        """Nobody wants what `pending` brings any more; what is to be sent, if anything could still come."""
        return encode(Abandon(pending.number)) if self._pending.pop(pending.number, None) is not None else None

    def lose(self, error: LlmosError) -> list[AnyPending]:
        """The connection is gone: whatever waits gets `error`. The requests that do."""
        lost = list(self._pending.values())
        self._pending.clear()
        for pending in lost:
            pending.lose(error)
        return lost


def hello(name: str) -> bytes:
    """The first frame."""
    return encode(Hello(VERSION, name))


def received(payload: bytes) -> FromDaemon:
    """The message in a frame. Raises `MalformedFrame`."""
    message: FromDaemon = decode(payload, FromDaemon)
    return message


def welcomed(message: FromDaemon) -> Welcome:
    """The daemon's welcome. Raises its refusal."""
    if isinstance(message, Failure):
        raise from_wire(message.error)
    if not isinstance(message, Welcome):
        raise ConnectionLost(f"expected a welcome, got {type(message).__name__}; is this an llmosd socket?")
    return message


def lost(socket: object) -> LlmosError:
    """The error for a daemon that has closed the connection."""
    return ConnectionLost(f"the daemon at {socket} closed the connection")


def not_connected() -> LlmosError:
    """The error for a client that was not connected."""
    return ConnectionLost("this client is not connected; use it as a context manager")
