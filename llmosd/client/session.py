"""The client's side of a connection: request ids, answers, events and credit.

Used by both clients; each adds its own way to write, read and wait. It encodes requests, passes answers and events to
their requests, grants credit as events are read, and raises the daemon's errors. It does no I/O.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Generic, TypeVar, cast

import msgspec

from ipc.codec import decode, encode
from ipc.errors import ConnectionLost, LlmosError, from_wire
from ipc.frames import MAX_FRAME, too_large
from ipc.messages import State
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

CREDIT = 256  # events that the daemon may send ahead; whenever half of them were read, their number is granted again


class PendingRequest:
    """A request that was sent, and its unread answer and events. `streams`: whether events follow the answer."""

    __slots__ = ("_ended", "_error", "_events", "_read", "_value", "call", "number", "streams")

    def __init__(self, number: int, call: Syscall, streams: bool) -> None:
        self.number = number
        self.call = call
        self.streams = streams
        self._value: msgspec.Raw | None = None
        self._events: deque[StreamEvent] = deque()
        self._read = 0  # events read since credit was last granted
        self._ended = False  # all events have arrived
        self._error: LlmosError | None = None  # why there is no answer, or why no more events arrive

    @property
    def answered(self) -> bool:
        """Whether there is an answer, or an error in its place."""
        return self._value is not None or self._error is not None

    @property
    def complete(self) -> bool:
        """Whether the daemon will send nothing more for this request."""
        return self._ended if self.streams and self._value is not None else self.answered

    def check(self) -> None:
        """Raise the error that cut the request off, if any."""
        if self._error is not None:
            raise self._error

    @property
    def exhausted(self) -> bool:
        """Whether all events were read."""
        return self._ended and not self._events

    def answer(self) -> Any:
        """The answer, decoded as the return type of the call. Raises the error of the call."""
        if self._value is None:
            assert self._error is not None
            raise self._error
        return decode(self._value, type(self.call).returns or Any)

    def next(self) -> StreamEvent | None:
        """The next event; None if none has arrived. Raises the error if none can arrive any more."""
        if self._events:
            self._read += 1
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        return None

    def early_states(self) -> list[State]:
        """The states that arrived before the answer, which say what the answer waits for. They are read then."""
        if self.answered:
            return []
        states = [message.event for message in self._events if isinstance(message.event, State)]
        self._events = deque(message for message in self._events if not isinstance(message.event, State))
        self._read += len(states)
        return states

    def take_credit(self) -> bytes | None:
        """A message that grants credit for the events read so far; None if it is too early, or no events can follow."""
        if self._read < CREDIT // 2 or self._ended or self._error is not None:
            return None
        read, self._read = self._read, 0
        return encode(Credit(self.number, read))

    def take(self, message: RawAnswer | Failure | StreamEvent | End) -> None:
        """Handle a message of the daemon for this request."""
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

    def expire(self, error: LlmosError) -> None:
        """The time for the answer is over: fail with `error` unless the answer has arrived."""
        if not self.answered:
            self._error = error

    def lose(self, error: LlmosError) -> None:
        """The connection is lost: fail with `error` unless all events have arrived."""
        if not self._ended:
            self._error = error


AnyPending = TypeVar("AnyPending", bound=PendingRequest)


class Session(Generic[AnyPending]):
    """The requests of one connection. `kind` is the class of its pending requests."""

    def __init__(self, kind: type[AnyPending]) -> None:
        self._kind = kind
        self._pending: dict[int, AnyPending] = {}
        self._last_id = 0

    def open(self, call: Syscall, *, streams: bool = False) -> tuple[AnyPending, bytes]:
        """Make a request. Returns the request, and the payload to send. Raises `NotEncodable` and `FrameTooLarge`."""
        number = self._last_id + 1
        payload = encode(Request(number, cast("SystemCall", call)))
        if len(payload) > MAX_FRAME:
            raise too_large(f"a {type(call).__name__} with all its arguments", len(payload), MAX_FRAME)
        self._last_id = number
        pending = self._pending[number] = self._kind(number, call, streams)
        return pending, payload

    def take(self, message: FromDaemon) -> AnyPending | None:
        """Pass a message to its request, and return the request; None if the request was abandoned.

        A message may instead end the whole connection. Raises the error in such a message.
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

    def unanswered(self) -> list[AnyPending]:
        """The requests that wait for their answers."""
        return [pending for pending in self._pending.values() if not pending.answered]

    def abandon(self, pending: AnyPending) -> bytes | None:
        """Drop `pending`. Returns the payload to send; None if the daemon sends nothing more for `pending` anyway."""
        return encode(Abandon(pending.number)) if self._pending.pop(pending.number, None) is not None else None

    def lose(self, error: LlmosError) -> list[AnyPending]:
        """The connection is lost: fail all pending requests with `error`, and return them."""
        lost = list(self._pending.values())
        self._pending.clear()
        for pending in lost:
            pending.lose(error)
        return lost


def hello(name: str) -> bytes:
    """The payload of the first frame of a client."""
    return encode(Hello(VERSION, name))


def received(payload: bytes) -> FromDaemon:
    """Decode the message in a frame. Raises `MalformedFrame`."""
    message: FromDaemon = decode(payload, FromDaemon)
    return message


def welcomed(message: FromDaemon) -> Welcome:
    """Check that `message` is the daemon's welcome. Raises the daemon's refusal."""
    if isinstance(message, Failure):
        raise from_wire(message.error)
    if not isinstance(message, Welcome):
        raise ConnectionLost(f"expected a welcome, got {type(message).__name__}; is this an llmosd socket?")
    return message


def closed_by_daemon(socket: object) -> LlmosError:
    """The error for a connection that the daemon closed."""
    return ConnectionLost(f"the daemon at {socket} closed the connection")


def not_connected() -> LlmosError:
    """The error for a client without a connection."""
    return ConnectionLost("this client is not connected; use it as a context manager")
