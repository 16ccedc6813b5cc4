"""Streams: the events of a task on their way to one client, no more of them than it granted credit for.

Made by connections, fed by the kernel. What cannot go out waits here, bounded: neighbouring tokens of one generation
join into one event, `emit` and generations pause while the stream is `congested`, and log lines give way to a count of
them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ipc.messages import Event, Log, State, Token

MAX_EVENTS = 256  # waiting events at which the stream is congested
MAX_TEXT = 64 * 1024  # waiting characters of tokens at which it is


class _Text:
    """Tokens of one generation that wait, joined."""

    __slots__ = ("call", "parts", "pid")

    def __init__(self, token: Token) -> None:
        self.pid, self.call, self.parts = token.pid, token.call, [token.text]


class _Gap:
    """Where log lines were left out, and how many."""

    __slots__ = ("line", "lines")

    def __init__(self, line: Log) -> None:
        self.line, self.lines = line, 1


class Stream:
    """One request's events. `deliver` writes one to the client, `on_end` is called after the last one went out.

    `number` is that of the event that is being delivered; of one that was joined, that of its last.
    """

    __slots__ = (
        "_credit",
        "_deliver",
        "_ending",
        "_on_end",
        "_on_relief",
        "_queue",
        "_text",
        "closed",
        "number",
    )

    def __init__(self, deliver: Callable[[Event], None], credit: int, on_end: Callable[[], None]) -> None:
        self._deliver = deliver
        self._on_end = on_end
        self._ending = False
        self._credit = credit
        self._queue: deque[tuple[Event | _Text | _Gap, int]] = deque()
        self._text = 0
        self._on_relief: list[Callable[[], None]] = []
        self.closed = False
        self.number = 0

    @property
    def congested(self) -> bool:
        return not self.closed and (len(self._queue) >= MAX_EVENTS or self._text >= MAX_TEXT)

    def push(self, event: Event, number: int = 0) -> None:
        """Deliver `event` now if there is credit, else keep it. Never blocks and never raises."""
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
            # Only neighbours join: whoever has seen an event has then seen all with lower numbers.
            if isinstance(last, _Text) and (last.pid, last.call) == (event.pid, event.call):
                last.parts.append(event.text)
                self._queue[-1] = last, number
            else:
                self._queue.append((_Text(event), number))
        elif isinstance(event, Log | State) and len(self._queue) >= MAX_EVENTS:
            self._leave_out(event, number)
        else:
            self._queue.append((event, number))

    def grant(self, events: int) -> None:
        """The client can take `events` more."""
        self._credit += events
        while self._credit and self._queue:
            self._credit -= 1
            self._deliver(self._next())
        if not self.congested:
            self._relieve()
        if self._ending and not self._queue:
            self._on_end()

    def end(self) -> None:
        """No event comes after those already pushed."""
        self._ending = True
        if not self.closed and not self._queue:
            self._on_end()

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the stream is no longer congested or is closed."""
        self._on_relief.append(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Take back what `when_drained` was given, if it was not called yet."""
        if callback in self._on_relief:
            self._on_relief.remove(callback)

    def close(self) -> None:
        """Nobody listens any more; whoever waits for room goes on."""
        self.closed = True
        self._queue.clear()
        self._text = 0
        self._relieve()

    def _leave_out(self, event: Log | State, number: int) -> None:
        """There is no room for `event`. A state is soon out of date; of log lines the reader learns how many."""
        last = self._queue[-1][0]
        if isinstance(event, State):
            return
        if isinstance(last, _Gap):
            last.lines += 1
            self._queue[-1] = last, number
        else:
            self._queue.append((_Gap(event), number))

    def _next(self) -> Event:
        """The first event that waits."""
        waiting, self.number = self._queue.popleft()
        if isinstance(waiting, _Text):
            text = "".join(waiting.parts)
            self._text -= len(text)
            return Token(text, waiting.pid, waiting.call)
        if isinstance(waiting, _Gap):
            line = waiting.line
            return Log(
                line.pid, line.time, "warning", "log lines left out: they were not read", {"lines": waiting.lines}
            )
        return waiting

    def _relieve(self) -> None:
        callbacks, self._on_relief = self._on_relief, []
        for callback in callbacks:
            callback()
