"""Streams: the events of a task on their way to one client, at most as many as the client granted credit for.

A connection makes the stream, and the kernel pushes events into it. Events without credit wait in a queue. The queue
stays short: neighbouring tokens of one generation join into one event, and so do neighbouring printed lines; `emit` and
generations pause while the stream is `congested`; a count replaces excess log lines. A push never blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from ipc.messages import Emitted, Event, Log, State, Token

MAX_EVENTS = 256  # the stream is congested when so many events wait,
MAX_TEXT = 64 * 1024  # or so many characters of tokens,
MAX_EMITTED = 1024 * 1024  # or so many bytes of emitted values
MAX_LINES = 4096  # characters of printed lines that join into one event
PRINTED = frozenset({"stdout", "stderr"})  # the levels of printed lines


class _Text:
    """Tokens of one generation that wait, joined into one event."""

    __slots__ = ("call", "parts", "pid")

    def __init__(self, token: Token) -> None:
        self.pid, self.call, self.parts = token.pid, token.call, [token.text]


class _Lines:
    """Printed lines of one process that wait, joined into one event of several lines."""

    __slots__ = ("first", "parts", "room")

    def __init__(self, line: Log) -> None:
        self.first, self.parts, self.room = line, [line.event], MAX_LINES - len(line.event)

    def takes(self, line: Log) -> bool:
        return (line.pid, line.level) == (self.first.pid, self.first.level) and len(line.event) < self.room


class _Gap:
    """Stands for log lines that were dropped at this place: the first of them, and their count."""

    __slots__ = ("line", "lines")

    def __init__(self, line: Log) -> None:
        self.line, self.lines = line, 1


class Stream:
    """The events of one request. `deliver` writes an event to the client. `on_end` is called after the last event.

    `number` is the number of the event that is being delivered. Joined tokens have the number of the last token.
    `reader` is the pid of the client's connection; 0 if unknown.
    """

    __slots__ = (
        "_credit",
        "_deliver",
        "_emitted",
        "_ending",
        "_on_drained",
        "_on_end",
        "_queue",
        "_text",
        "closed",
        "number",
        "reader",
    )

    def __init__(self, deliver: Callable[[Event], None], credit: int, on_end: Callable[[], None]) -> None:
        self._deliver = deliver
        self._on_end = on_end
        self._ending = False
        self._credit = credit
        self._queue: deque[tuple[Event | _Text | _Lines | _Gap, int]] = deque()
        self._text = 0
        self._emitted = 0
        self._on_drained: dict[Callable[[], None], None] = {}  # in the order of registration
        self.closed = False
        self.number = 0
        self.reader = 0

    @property
    def congested(self) -> bool:
        return not self.closed and (
            len(self._queue) >= MAX_EVENTS or self._text >= MAX_TEXT or self._emitted >= MAX_EMITTED
        )

    @property
    def readers(self) -> list[Stream]:
        """The streams to the clients: this one. An event log may have several."""
        return [self]

    @property
    def unread(self) -> int:
        """The number of events that wait for credit."""
        return len(self._queue)

    @property
    def unread_text(self) -> int:
        """The number of characters of tokens that wait for credit."""
        return self._text

    def push(self, event: Event, number: int = 0) -> None:
        """Deliver `event` now if there is credit, else queue it. Never blocks and never raises."""
        if self.closed:
            return
        if self._credit and not self._queue:
            self._credit -= 1
            self.number = number
            self._deliver(event)
            return
        if type(event) is Token:
            self._text += len(event.text)
            last = self._queue[-1][0] if self._queue else None
            # Only neighbours join, so that a client that has seen an event has seen all events with lower numbers.
            if isinstance(last, _Text) and (last.pid, last.call) == (event.pid, event.call):
                last.parts.append(event.text)
                self._queue[-1] = last, number
            else:
                self._queue.append((_Text(event), number))
        elif type(event) is Log and event.level in PRINTED and self._join(event, number):
            pass
        elif isinstance(event, Log | State) and len(self._queue) >= MAX_EVENTS:
            self._drop(event, number)
        else:
            if type(event) is Emitted:
                self._emitted += size_of(event.value)
            self._queue.append((event, number))

    def grant(self, events: int) -> None:
        """Let `events` more events go to the client."""
        self._credit += events
        while self._credit and self._queue:
            self._credit -= 1
            self._deliver(self._pop())
        if not self.congested:
            self._call_drained()
        if self._ending and not self._queue:
            self._on_end()

    def end(self) -> None:
        """Call `on_end` when all pushed events are delivered, now if they are. No event may follow."""
        self._ending = True
        if not self.closed and not self._queue:
            self._on_end()

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, at the next grant that leaves the stream uncongested, or when the stream is closed."""
        self._on_drained[callback] = None

    def forget(self, callback: Callable[[], None]) -> None:
        """Undo `when_drained`, if `callback` was not called yet."""
        self._on_drained.pop(callback, None)

    def close(self) -> None:
        """Drop the waiting and all later events, because the client has gone. Call the callbacks of `when_drained`."""
        self.closed = True
        self._queue.clear()
        self._text = self._emitted = 0
        self._call_drained()

    def _join(self, line: Log, number: int) -> bool:
        """Put a printed line into the queue, unless the queue is full and its last lines have no room."""
        last = self._queue[-1][0] if self._queue else None
        if isinstance(last, _Lines) and last.takes(line):
            last.parts.append(line.event)
            last.room -= len(line.event) + 1
            self._queue[-1] = last, number
            return True
        if len(self._queue) >= MAX_EVENTS:
            return False
        self._queue.append((_Lines(line), number))
        return True

    def _drop(self, event: Log | State, number: int) -> None:
        """Drop `event`, since the queue is full. Count log lines, so that the client learns how many it missed."""
        last = self._queue[-1][0]
        if isinstance(event, State):  # soon out of date, so not worth counting
            return
        if isinstance(last, _Gap):
            last.lines += 1
            self._queue[-1] = last, number
        else:
            self._queue.append((_Gap(event), number))

    def _pop(self) -> Event:
        """Remove and return the first waiting event."""
        waiting, self.number = self._queue.popleft()
        if isinstance(waiting, _Text):
            text = "".join(waiting.parts)
            self._text -= len(text)
            return Token(text, waiting.pid, waiting.call)
        if isinstance(waiting, _Lines):
            line = waiting.first
            return Log(line.pid, line.time, line.level, "\n".join(waiting.parts), line.fields)
        if isinstance(waiting, _Gap):
            line = waiting.line
            fields = {"lines": waiting.lines}
            return Log(line.pid, line.time, "warning", "log lines dropped: the client did not read them", fields)
        if type(waiting) is Emitted:
            self._emitted -= size_of(waiting.value)
        return waiting

    def _call_drained(self) -> None:
        callbacks, self._on_drained = self._on_drained, {}
        for callback in callbacks:
            callback()


def size_of(value: object) -> int:
    """The approximate size of a value on its way to a client. A frozen Struct, which passes as it is, counts as 0."""
    if isinstance(value, msgspec.Raw):
        return memoryview(value).nbytes
    return len(value) if isinstance(value, str | bytes) else 0
