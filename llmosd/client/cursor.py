"""The state of a reader of a task: the events that were read so far, and how the task ended.

Base of `Task` and `AsyncTask`, which fetch the events. It does no I/O.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from ipc.errors import ErrorInfo, LlmosError, from_wire
from ipc.messages import Event, Failed, Restarted, Result
from ipc.protocol import StreamEvent
from ipc.syscalls import Submitted


class Cursor(NamedTuple):
    """A position in the events of a task: the attempt, and the number of the last event that was read."""

    attempt: int
    number: int


class TaskReader:
    """A task, and the position up to which its events were read.

    `id` never changes. `pid` is the number of the task's process in this run of the daemon, 0 if the task has no
    process. To continue after the last event that was read, pass `seen` to `attach` on another connection.
    """

    def __init__(self, submitted: Submitted, after: Cursor | tuple[int, int] | None) -> None:
        self.id = submitted.id
        self.pid = submitted.pid
        self.seen = Cursor(submitted.attempt, 0)
        self._local_events: deque[Event] = deque()  # made by this client; read before the daemon's events
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


def error_of_process(info: ErrorInfo) -> LlmosError:
    """The error that ended a process, which is marked as such."""
    error = from_wire(info)
    error.ended_process = True
    return error


def final_value(event: Event) -> Any:
    """The value in the last event of a task. Raises the error of the task."""
    if isinstance(event, Failed):
        raise error_of_process(event.error)
    assert isinstance(event, Result)
    return event.value
