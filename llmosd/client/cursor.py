"""The state of a reader of a task: how far its events were read, and how the task ended.

Base of `Task` and `AsyncTask`, which fetch the events. It does no I/O.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from ipc.errors import from_wire
from ipc.messages import Event, Failed, Restarted, Result
from ipc.protocol import StreamEvent
from ipc.syscalls import Submitted


class Cursor(NamedTuple):
    """A position in the events of a task: the attempt, and the number of the last event that was read."""

    attempt: int
    number: int


class TaskReader:
    """A task, and how far its events were read.

    `id` never changes. `pid` is that of the task's process in this run of the daemon, 0 if it has none. Pass `seen` to
    `attach` on another connection to continue after the last event that was read.
    """

    def __init__(self, submitted: Submitted, after: Cursor | tuple[int, int] | None) -> None:
        self.id = submitted.id
        self.pid = submitted.pid
        self.seen = Cursor(submitted.attempt, 0)
        self._local_events: deque[Event] = deque()  # made by this client, read before those of the daemon
        if after is not None and after[0] not in (0, submitted.attempt):
            self._local_events.append(Restarted(submitted.pid, submitted.attempt))
        self._final: Event | None = None

    def _read(self, message: StreamEvent) -> Event:
        """Unpack the event in `message`, and advance `seen` past it."""
        self.seen = Cursor(self.seen.attempt, message.number)
        if is_final(message.event):
            self._final = message.event
        return message.event

    def _value(self) -> Any:
        """The value that the agent returned; all events must have been read. Raises the error of the agent."""
        assert self._final is not None
        return final_value(self._final)


def is_final(event: Event) -> bool:
    """Whether `event` is the last one of a task."""
    return isinstance(event, Result | Failed)


def final_value(event: Event) -> Any:
    """The value in the last event of a task. Raises the error of the task."""
    if isinstance(event, Failed):
        raise from_wire(event.error)
    assert isinstance(event, Result)
    return event.value
