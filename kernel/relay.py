"""A relay: the events of one task, to all the streams of clients that look at it. It may have none, and gain more.

Made by the task subsystem; for the processes of the task it is their stream. A reader that is behind holds up the task
as it would alone.
"""

from __future__ import annotations

from collections.abc import Callable

from ipc.messages import Event
from kernel.stream import Stream


class Relay:
    """Passes events on. `add` and `finish` are for the task, the rest is what processes use of a `Stream`."""

    __slots__ = ("_on_relief", "_streams")

    def __init__(self, stream: Stream | None) -> None:
        self._streams: list[Stream] = [] if stream is None else [stream]
        self._on_relief: list[Callable[[], None]] = []

    def add(self, stream: Stream) -> None:
        """Pass events on to `stream`, too, from now on."""
        self._streams = [other for other in self._streams if not other.closed]
        self._streams.append(stream)

    def finish(self, event: Event) -> None:
        """Pass on the last event."""
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.push(event)
            stream.end()
        self._relieved()

    @property
    def congested(self) -> bool:
        return any(stream.congested for stream in self._streams)

    def push(self, event: Event) -> None:
        for stream in self._streams:
            stream.push(event)

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when no stream is congested any more."""
        self._on_relief.append(callback)
        self._relieved()

    def forget(self, callback: Callable[[], None]) -> None:
        """Take back what `when_drained` was given, if it was not called yet."""
        if callback in self._on_relief:
            self._on_relief.remove(callback)

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
