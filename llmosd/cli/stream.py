"""Prints the events of a task as they come: text on standard output, the rest on standard error.

Called by `llmos run`. On a terminal a status line shows what the task waits for while there is no text yet.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from ipc.messages import Emitted, Event, Failed, Log, Result, State, Token
from llmosd import session
from llmosd.cli import show
from llmosd.client import Task

CLEAR_LINE = "\r\x1b[K"


class StatusLine:
    """One line on standard error, rewritten in place on a terminal; elsewhere a line for each new stage."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = ""

    def show(self, state: State) -> None:
        if self._terminal:
            sys.stderr.write(f"{CLEAR_LINE}{state.state}: {state.detail}" if state.detail else CLEAR_LINE)
            sys.stderr.flush()
            self._shown = state.detail
            return
        stage = f"{state.state}: {state.detail.rstrip('0123456789% ')}"
        if state.detail and stage != self._shown:
            print(stage, file=sys.stderr)
            self._shown = stage

    def clear(self) -> None:
        if self._terminal and self._shown:
            sys.stderr.write(CLEAR_LINE)
            sys.stderr.flush()
            self._shown = ""


def print_events(task: Task, timeout: float | None) -> None:
    """Print all events of `task`, and its result unless its text was streamed already. Raises the task's error."""
    status = StatusLine()
    streamed: list[str] = []
    handlers: dict[type[Event], Callable[..., None]] = {
        Token: lambda event: _print_token(event, streamed),
        Emitted: lambda event: show.value(event.value, as_json=False),
        Log: lambda event: show.log_line(event, as_json=False, file=sys.stderr),
    }
    try:
        for event in task.events(timeout):
            if isinstance(event, State):
                status.show(event)
                continue
            status.clear()
            if isinstance(event, Result | Failed):
                _print_result(event, "".join(streamed))
            else:
                handlers[type(event)](event)
    finally:
        status.clear()


def _print_token(event: Token, streamed: list[str]) -> None:
    streamed.append(event.text)
    sys.stdout.write(event.text)
    sys.stdout.flush()


def _print_result(event: Event, streamed: str) -> None:
    if streamed and not streamed.endswith("\n"):
        sys.stdout.write("\n")
    result = session.final_value(event)
    if result is not None and result != streamed:
        show.value(result, as_json=False)
