"""The event log of a task: passes the task's events to the streams of all clients that are attached, if any.

The task subsystem makes it, and the processes of the task use it as their stream. One client that reads slowly pauses
the task, however many others are attached. The log numbers the events and retains the last ones, so that a client that
lost its connection gets the events that it missed. It never retains anything before the first event or after the last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ipc.messages import Emitted, Event, Log, Missed, Token
from kernel.core.stream import Stream, size_of

RETAINED_EVENTS = 1024  # events of a task that clients can get when they attach again
RETAINED_SIZE = 256 * 1024  # the sum of their sizes, each as measured by `_size`
EVENT_OVERHEAD = 64  # counted for each event besides its text


class EventLog:
    """Passes events on. The task calls `add` and `finish`; its processes call the rest, as they would on a `Stream`."""

    __slots__ = ("_number", "_on_drained", "_retained", "_size", "_streams")

    def __init__(self, stream: Stream | None) -> None:
        self._streams: list[Stream] = [] if stream is None else [stream]
        self._on_drained: dict[Callable[[], None], None] = {}  # in the order of registration
        self._number = 0  # the number of the last event
        self._retained: deque[Event] | None = None  # the last events, up to event `_number`; made at the first
        self._size = 0  # the size of the retained events

    def add(self, stream: Stream, after: int | None = None) -> None:
        """Pass events on to `stream`, too: the events from now on, or all events with a number above `after`.

        A `Missed` replaces the events above `after` that are no longer retained.
        """
        count = len(self._streams)
        if not count & (count - 1):  # a power of two: so an attachment does not look at all streams each time
            self._streams = [other for other in self._streams if not other.closed]
        if after is not None:
            self._resend(stream, after)
        self._streams.append(stream)

    def finish(self, event: Event) -> None:
        """Pass on the last event, end the streams, and drop the retained events."""
        streams, self._streams = self._streams, []
        self._retained = None
        self._number += 1
        for stream in streams:
            stream.push(event, self._number)
            stream.end()
        self._check_drained()

    @property
    def readers(self) -> list[Stream]:
        """The streams to the clients that are attached."""
        return [stream for stream in self._streams if not stream.closed]

    @property
    def congested(self) -> bool:
        return any(stream.congested for stream in self._streams)

    def push(self, event: Event) -> None:
        self._number += 1
        self._retain(event)
        for stream in self._streams:
            stream.push(event, self._number)

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, as soon as no stream is congested. This may be now."""
        self._on_drained[callback] = None
        self._check_drained()

    def forget(self, callback: Callable[[], None]) -> None:
        """Undo `when_drained`, if `callback` was not called yet."""
        self._on_drained.pop(callback, None)

    def _retain(self, event: Event) -> None:
        if self._retained is None:
            self._retained = deque()
            self._size = 0
        self._retained.append(event)
        self._size += _size(event)
        while len(self._retained) > RETAINED_EVENTS or self._size > RETAINED_SIZE:
            self._size -= _size(self._retained.popleft())

    def _resend(self, stream: Stream, after: int) -> None:
        retained = self._retained or ()
        first = self._number - len(retained) + 1
        if after + 1 < first:
            stream.push(Missed(0, first - after - 1), first - 1)
        for number, event in enumerate(retained, first):
            if number > after:
                stream.push(event, number)

    def _check_drained(self) -> None:
        """Call the callbacks if no stream is congested; otherwise check again when a congested one has drained."""
        for stream in self._streams:
            if stream.congested:
                stream.forget(self._check_drained)
                stream.when_drained(self._check_drained)
                return
        callbacks, self._on_drained = self._on_drained, {}
        for callback in callbacks:
            callback()


def _size(event: Event) -> int:
    """The approximate size of an event. A frozen Struct that an agent emits counts only as the overhead."""
    text: object = ""
    if isinstance(event, Token):
        text = event.text
    elif isinstance(event, Emitted):
        text = event.value
    elif isinstance(event, Log):
        text = event.event
    return size_of(text) + EVENT_OVERHEAD
