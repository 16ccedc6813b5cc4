"""What whoever follows a task knows of it: how far its events were read, and how it ended. No I/O.

Base of `Task` and `AsyncTask`, which fetch the events.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from ipc.errors import from_wire
from ipc.messages import Event, Failed, Restarted, Result
from ipc.protocol import StreamEvent
from ipc.syscalls import Submitted


class Cursor(NamedTuple):
    """How far somebody has seen the events of a task: which attempt of it, and the number of the last event."""

    attempt: int
    number: int


class TaskReader:
    """How far the events of a task were read.

    `id` lasts. `pid` is that of the task's process in this run of the daemon, 0 if it has none. `seen` is for `attach`
    on another connection.
    """

    def __init__(self, submitted: Submitted, after: Cursor | tuple[int, int] | None) -> None:
        self.id = submitted.id
        self.pid = submitted.pid
        self.seen = Cursor(submitted.attempt, 0)
        self._first: deque[Event] = deque()  # events that are not of the daemon
        if after is not None and after[0] not in (0, submitted.attempt):
            self._first.append(Restarted(submitted.pid, submitted.attempt))
        self._final: Event | None = None

    def _read(self, message: StreamEvent) -> Event:
        """The event in `message`, from now on one that was read."""
        self.seen = Cursor(self.seen.attempt, message.number)
        if is_final(message.event):
            self._final = message.event
        return message.event

    def _value(self) -> Any:
        """The value that the agent returned. Raises its error. All events were read."""
        assert self._final is not None
        return final_value(self._final)


def is_final(event: Event) -> bool:
    """Whether `event` is the last one of a task."""
    return isinstance(event, Result | Failed)


def final_value(event: Event) -> Any:
    """The value of the last event of a task. Raises its error."""
    if isinstance(event, Failed):
        raise from_wire(event.error)
    assert isinstance(event, Result)
    return event.value
