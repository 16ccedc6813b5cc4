"""Prints the events of a task as they come: text on standard output, the rest on standard error.

Called by `llmos run` and `llmos attach`. On a terminal a status line shows what the task waits for while there is no
text yet.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from ipc.messages import Emitted, Event, Failed, Log, Missed, Restarted, Result, State, Token
from llmosd.cli import show
from llmosd.client import cursor

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


class TokenText:
    """What was written of the tokens. Of a task that began anew, what comes again as it was is not written again."""

    def __init__(self) -> None:
        self._written = ""
        self._again = 0  # characters of it that came again, so far
        self._anew = False

    def ended(self) -> str:
        """The text of the last attempt, which stands in the output as it is."""
        if self._anew:  # it is shorter than the one before
            self._written, self._anew = self._written[: self._again], False
            sys.stdout.write(f"\n{self._written}")
        return self._written

    def __bool__(self) -> bool:
        return bool(self._written)

    def restarted(self, event: Restarted) -> None:
        _note(f"the task has begun anew: attempt {event.attempt}")
        self._again, self._anew = 0, bool(self._written)

    def write(self, token: str) -> None:
        if self._anew:
            known = self._written[self._again : self._again + len(token)]
            if token.startswith(known):
                self._again += len(known)
                token = token[len(known) :]
                self._anew = self._again < len(self._written)
            else:
                token = self._written[: self._again] + token
                self._written, self._anew = "", False
                sys.stdout.write("\n")
        self._written += token
        sys.stdout.write(token)
        sys.stdout.flush()


def print_events(events: Iterable[Event]) -> None:
    """Print the events of a task, and its result unless its text was streamed already. Raises the task's error."""
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
                _print_result(event, text.ended())
            else:
                handlers[type(event)](event)
    finally:
        status.clear()


def _missed(event: Missed, text: TokenText) -> None:
    if event.events or text:  # else it has ended, and nothing of it was seen before
        _note(f"{event.events or 'some'} events came before and are not kept any more")


def _note(text: str) -> None:
    print(f"llmos: {text}", file=sys.stderr)


def _print_result(event: Event, streamed: str) -> None:
    if streamed and not streamed.endswith("\n"):
        sys.stdout.write("\n")
    result = cursor.final_value(event)
    if result is not None and result != streamed:
        show.value(result, as_json=False)
