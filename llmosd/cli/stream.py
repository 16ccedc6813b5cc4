"""Prints the events of a task as they arrive: text on standard output, all else on standard error.

Called by `llmos run` and `llmos attach`. Until the first text arrives, a status line on a terminal says what the task
waits for. It never prints the result as JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from ipc.messages import Emitted, Event, Failed, Log, Missed, Restarted, Result, State, Token
from llmosd.cli import show
from llmosd.client import cursor

CLEAR_LINE = "\r\x1b[K"


class StatusLine:
    """A status line on standard error: rewritten in place on a terminal, elsewhere one line per new stage."""

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


class TokenText:
    """Writes the tokens of a task. If the task restarts, the text that its new attempt repeats is not written twice."""

    def __init__(self) -> None:
        self._written = ""
        self._repeated = 0  # the first characters of `_written` that the new attempt has repeated so far
        self._repeating = False  # the new attempt has so far only repeated text that was written before

    def finish(self) -> str:
        """Make sure that the output ends with the text of the last attempt, and return that text."""
        if self._repeating:  # the last attempt made less text than the attempt before it
            self._written, self._repeating = self._written[: self._repeated], False
            sys.stdout.write(f"\n{self._written}")
        return self._written

    def __bool__(self) -> bool:
        return bool(self._written)

    def restarted(self, event: Restarted) -> None:
        _note(f"the task started again: attempt {event.attempt}")
        self._repeated, self._repeating = 0, bool(self._written)

    def write(self, token: str) -> None:
        if self._repeating:
            known = self._written[self._repeated : self._repeated + len(token)]
            if token.startswith(known):
                self._repeated += len(known)
                token = token[len(known) :]
                self._repeating = self._repeated < len(self._written)
            else:
                token = self._written[: self._repeated] + token
                self._written, self._repeating = "", False
                sys.stdout.write("\n")
        self._written += token
        sys.stdout.write(token)
        sys.stdout.flush()


def print_events(events: Iterable[Event]) -> None:
    """Print the events of a task, and its result unless the tokens have shown it already. Raises the task's error."""
    status = StatusLine()
    text = TokenText()
    handlers: dict[type[Event], Callable[..., None]] = {
        Token: lambda event: text.write(event.text),
        Emitted: lambda event: show.value(event.value, as_json=False),
        Log: lambda event: show.log_line(event, as_json=False, file=sys.stderr),
        Missed: lambda event: _missed(event, text),
        Restarted: text.restarted,
    }
    try:
        for event in events:
            if isinstance(event, State):
                status.show(event)
                continue
            status.clear()
            if isinstance(event, Result | Failed):
                _print_result(event, text.finish())
            else:
                handlers[type(event)](event)
    finally:
        status.clear()


def _missed(event: Missed, text: TokenText) -> None:
    if event.events or text:  # otherwise the task has ended, and its result follows
        _note(f"{event.events or 'some'} earlier events are missing: the daemon no longer retains them")


def _note(text: str) -> None:
    print(f"llmos: {text}", file=sys.stderr)


def _print_result(event: Event, streamed: str) -> None:
    if streamed and not streamed.endswith("\n"):
        sys.stdout.write("\n")
    result = cursor.final_value(event)
    if result is not None and result != streamed:
        show.value(result, as_json=False)
