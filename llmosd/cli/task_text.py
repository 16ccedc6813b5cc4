"""The text that a task generates, as it appears on standard output.

Used by `llmosd.cli.stream`. It separates the model calls, and labels those of children. If the task restarts, it does
not write again what the new attempt repeats. It never prints the result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec

from ipc.messages import Token
from llmosd.cli.call_order import CallOrder, ModelCall

# Characters. The end of a longer text is all that is compared with the result, and with the text of a new attempt.
MOST_REMEMBERED = 1 << 22


class LineOutput:
    """Standard output, and whether its last line is still `open`: begun, but without its end."""

    def __init__(self) -> None:
        self.open = False

    def write(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self.open = not text.endswith("\n")

    def end_line(self) -> None:
        """Begin a new line, unless the output is at the beginning of one."""
        if self.open:
            self.write("\n")


class TaskText:
    """Writes the tokens of a task to `out`. `label_of` returns the text before the calls of a process, or ""."""

    def __init__(self, out: LineOutput, label_of: Callable[[int], str]) -> None:
        self._out = out
        self._label_of = label_of
        self._any = False  # some text was written
        self._earlier = ""  # the text that earlier attempts have written
        self._begin()

    def _begin(self) -> None:
        """Begin a new attempt."""
        self._order = CallOrder()
        self._call: ModelCall | None = None  # the call to which the last text belongs
        self._written: list[str] = []  # the text of this attempt, with labels and separators
        self._size = 0  # its characters
        self._own: list[str] = []  # the tokens of this attempt that have no label,
        self._last: list[str] = []  # and those of them that belong to their last call
        self._last_call: ModelCall | None = None
        self._repeated = 0  # the first characters of `_earlier` that this attempt has repeated so far
        self._repeating = bool(self._earlier)  # this attempt has so far only repeated earlier text

    def __bool__(self) -> bool:
        """Whether any text was written."""
        return self._any

    def token(self, event: Token) -> None:
        """Write a token, or hold it until the calls before it have been written."""
        for call, text in self._order.add(ModelCall(event.pid, event.call), event.text):
            self._write(call, text)

    def restarted(self) -> None:
        """A new attempt begins; its tokens follow."""
        self._write_rest()
        if not self._repeating:
            self._earlier = "".join(self._written)
        self._begin()

    def finish(self) -> None:
        """Write what is held, and make sure that the output ends with the text of the last attempt."""
        self._write_rest()
        if self._repeating:  # the last attempt made less text than the attempt before it
            self._repeating = False
            self._out.end_line()
            self._out.write(self._earlier[: self._repeated])
        self._out.end_line()

    def shows(self, result: Any) -> bool:
        """Whether the last call, or all calls together, have shown `result` already."""
        texts = ["".join(part).strip() for part in (self._last, self._own)]
        if isinstance(result, str):
            return result.strip() in texts
        try:  # the text of a call with a constraint is the JSON of its value
            return any(text and msgspec.json.decode(text) == result for text in texts)
        except (msgspec.DecodeError, RecursionError):
            return False

    def _write_rest(self) -> None:
        for call, text in self._order.rest():
            self._write(call, text)

    def _write(self, call: ModelCall, text: str) -> None:
        label = self._label_of(call.pid)
        if call != self._call:
            if self._call is not None:
                ended = bool(self._written) and self._written[-1].endswith("\n")
                self._put("\n" if ended else "\n\n", separates=True)
            self._call = call
            self._put(label)
        if not label:
            if call != self._last_call:
                self._last_call, self._last = call, []
            self._own.append(text)
            self._last.append(text)
        self._put(text)

    def _put(self, text: str, *, separates: bool = False) -> None:
        """Write the next text of this attempt, except for its part that an earlier attempt has written."""
        if not text:
            return
        self._any = True
        self._remember(text)
        if self._repeating:
            known = self._earlier[self._repeated : self._repeated + len(text)]
            if text.startswith(known):
                self._repeated += len(known)
                text = text[len(known) :]
                self._repeating = self._repeated < len(self._earlier)
            else:
                text = self._earlier[: self._repeated] + text
                self._repeating = False
                self._out.end_line()
        if separates and text and not self._out.open:  # a value or a note has ended the line already
            text = "\n"
        self._out.write(text)

    def _remember(self, text: str) -> None:
        self._size += len(text)
        if self._size > MOST_REMEMBERED:
            for part in (self._written, self._own, self._last):
                part.clear()
            self._size = len(text)
        self._written.append(text)
