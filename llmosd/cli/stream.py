"""Prints the events of a task as they arrive: text on standard output, all else on standard error.

Called by `llmos run` and `llmos attach`. In a pipe, only the result goes to standard output. On a terminal, the text of
the task's own process appears as it is generated, and a status line says what the task waits for until then. It never
prints the result as JSON if the result is a string.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

from ipc.errors import LlmosError
from ipc.messages import Emitted, Event, Failed, Log, Missed, Restarted, Result, State, Token
from ipc.syscalls import ExitStatus, Wait
from llmosd.cli import show
from llmosd.cli.task_text import LineOutput, TaskText
from llmosd.client import cursor
from llmosd.client.blocking import Client
from llmosd.printable import printable_line
from llmosd.standard_streams import write_unescaped

CLEAR_LINE = "\r\x1b[K"
MOST_NAMES = 10_000  # of children, so that a task with endless children does not fill the memory


class StatusLine:
    """A status line on standard error: rewritten in place on a terminal, elsewhere one line per new stage."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = ""

    def show(self, state: State) -> None:
        if self._terminal:
            text = f"{state.state}: {state.detail}" if state.detail else ""
            write_unescaped(CLEAR_LINE + printable_line(text)[: _columns() - 1], sys.stderr)
            sys.stderr.flush()
            self._shown = state.detail
            return
        stage = f"{state.state}: {state.detail.rstrip('0123456789% ')}"
        if state.detail and stage != self._shown:
            print(printable_line(stage), file=sys.stderr)
            self._shown = stage

    def clear(self) -> None:
        if self._terminal and self._shown:
            clear_line()
            self._shown = ""


def clear_line() -> None:
    """Erase the line of the cursor, if standard error is a terminal."""
    if sys.stderr.isatty():
        write_unescaped(CLEAR_LINE, sys.stderr)
        sys.stderr.flush()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


class Labels:
    """The text before the output of each process: nothing for `own`, "[PROGRAM PID] " for its descendants."""

    def __init__(self, client: Client, own: int) -> None:
        self.own = own
        self._client = client
        self._known: dict[int, str] = {}

    def label(self, pid: int) -> str:
        if pid == self.own:
            return ""
        if pid not in self._known:
            if len(self._known) >= MOST_NAMES:
                self._known.clear()
            self._known[pid] = self._look_up(pid)
        return self._known[pid]

    def _look_up(self, pid: int) -> str:
        return printable_line(f"[{self._program(pid) or 'process'} {pid}] ")

    def _program(self, pid: int) -> str:
        """The program of a process, which may have ended; "" if the daemon no longer knows it."""
        try:
            for row in self._client.ps(start=pid, limit=1):
                if row.pid == pid:
                    return row.program
            status: ExitStatus = self._client.request(Wait(pid, timeout=0.0))
        except LlmosError:
            return ""
        return status.program


class EventPrinter:
    """Prints the events of one task. `stream`: also its text and emitted values; `children`: those of children too."""

    def __init__(self, labels: Labels, *, stream: bool, children: bool) -> None:
        self._labels = labels
        self._stream = stream
        self._children = children
        self._out = LineOutput()
        self._text = TaskText(self._out, labels.label)
        self._status = StatusLine()
        # Both streams are the same screen, so a note must not continue an open line of the text.
        self._one_screen = sys.stdout.isatty() and sys.stderr.isatty()
        self._handlers: dict[type[Event], Callable[..., None]] = {
            Token: self._token,
            Emitted: self._emitted,
            Log: self._log,
            Missed: self._missed,
            Restarted: self._restarted,
            Result: self._ended,
            Failed: self._ended,
        }

    def print(self, events: Iterable[Event]) -> None:
        """Print all events, and the result unless the text has shown it already. Raises the task's error."""
        try:
            for event in events:
                if isinstance(event, State):
                    if not (self._one_screen and self._out.open):
                        self._status.show(event)
                else:
                    self._status.clear()
                    self._handlers[type(event)](event)
        finally:
            self._status.clear()
            self._out.end_line()

    def _shown(self, pid: int) -> bool:
        """Whether the output of process `pid` appears."""
        self._labels.own = self._labels.own or pid
        return self._stream and (self._children or pid == self._labels.own)

    def _token(self, event: Token) -> None:
        if self._shown(event.pid):
            self._text.token(event)

    def _emitted(self, event: Emitted) -> None:
        if self._shown(event.pid):
            self._out.end_line()
            self._out.write(self._labels.label(event.pid))
            show.value(event.value, as_json=False)
            self._out.open = False

    def _log(self, event: Log) -> None:
        if self._one_screen:
            self._out.end_line()
        show.log_line(event, as_json=False, file=sys.stderr)

    def _missed(self, event: Missed) -> None:
        if event.events or self._text:  # otherwise the task has ended, and its result follows
            self.note(f"{event.events or 'some'} earlier events are missing: the daemon no longer retains them")

    def _restarted(self, event: Restarted) -> None:
        self.note(f"the task started again: attempt {event.attempt}")
        self._labels.own = event.pid
        self._text.restarted()

    def note(self, text: str) -> None:
        """Print a note of the command, such as that the task started again."""
        self._status.clear()
        if self._one_screen:
            self._out.end_line()
        print(f"llmos: {text}", file=sys.stderr)

    def _ended(self, event: Result | Failed) -> None:
        self._text.finish()
        result = cursor.final_value(event)
        if not self._text:
            show.result(result, as_json=False)
        elif result is not None and not self._text.shows(result):
            print()  # separates the result from the text
            show.result(result, as_json=False)
