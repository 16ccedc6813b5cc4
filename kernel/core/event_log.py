"""A event_log: the events of one task, to all the streams of clients that look at it. It may have none, and gain more.

Made by the task subsystem; for the processes of the task it is their stream. A reader that is behind holds up the task
as it would alone. Events are numbered, and the last ones kept, so that a client that lost its connection gets those
that it missed; what has emitted nothing keeps nothing, and at its end it forgets all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from ipc.messages import Emitted, Event, Log, Missed, Token
from kernel.core.stream import Stream

KEPT_EVENTS = 1024  # of a task, for those who come back
KEPT_SIZE = 256 * 1024  # characters and bytes in them, as far as that is known without encoding
BESIDES = 64  # of an event, besides its text


class EventLog:
    """Passes events on. `add` and `finish` are for the task, the rest is what processes use of a `Stream`."""

    __slots__ = ("_kept", "_number", "_on_relief", "_size", "_streams")

    def __init__(self, stream: Stream | None) -> None:
        self._streams: list[Stream] = [] if stream is None else [stream]
        self._on_relief: list[Callable[[], None]] = []
        self._number = 0  # of the last event
        self._kept: deque[Event] | None = None  # the last events; the last of them has that number
        self._size = 0  # of those

    def add(self, stream: Stream, after: int | None = None) -> None:
        """Pass events on to `stream`, too: from now on, or those with a number above `after`, as far as they are kept.

        If some are not, it gets a `Missed` in their place.
        """
        self._streams = [other for other in self._streams if not other.closed]
        if after is not None:
            self._repeat(stream, after)
        self._streams.append(stream)

    def finish(self, event: Event) -> None:
        """Pass on the last event."""
        streams, self._streams = self._streams, []
        self._kept = None
        self._number += 1
        for stream in streams:
            stream.push(event, self._number)
            stream.end()
        self._relieved()

    @property
    def congested(self) -> bool:
        return any(stream.congested for stream in self._streams)

    def push(self, event: Event) -> None:
        self._number += 1
        self._keep(event)
        for stream in self._streams:
            stream.push(event, self._number)

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when no stream is congested any more."""
        self._on_relief.append(callback)
        self._relieved()

    def forget(self, callback: Callable[[], None]) -> None:
        """Take back what `when_drained` was given, if it was not called yet."""
        if callback in self._on_relief:
            self._on_relief.remove(callback)

    def _keep(self, event: Event) -> None:
        if self._kept is None:
            self._kept = deque()
            self._size = 0
        self._kept.append(event)
        self._size += _size(event)
        while len(self._kept) > KEPT_EVENTS or self._size > KEPT_SIZE:
            self._size -= _size(self._kept.popleft())

    def _repeat(self, stream: Stream, after: int) -> None:
        kept = self._kept or ()
        first = self._number - len(kept) + 1
        if after + 1 < first:
            stream.push(Missed(0, first - after - 1), first - 1)
        for number, event in enumerate(kept, first):
            if number > after:
                stream.push(event, number)

    def _relieved(self) -> None:
        """Call back, or wait for the next stream that is behind."""
        for stream in self._streams:
            if stream.congested:
                stream.forget(self._relieved)
                stream.when_drained(self._relieved)
                return
        callbacks, self._on_relief = self._on_relief, []
        for callback in callbacks:
            callback()


def _size(event: Event) -> int:
    """What an event weighs, about: what an agent emits as a frozen Struct is not looked into."""
    text: object = ""
    if isinstance(event, Token):
        text = event.text
    elif isinstance(event, Emitted):
        text = event.value
    elif isinstance(event, Log):
        text = event.event
    if isinstance(text, msgspec.Raw):
        return len(memoryview(text)) + BESIDES
    return len(text) + BESIDES if isinstance(text, str | bytes) else BESIDES
