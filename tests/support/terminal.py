"""A pseudo-terminal under test: runs a command on it, types into it, and collects what would appear on the screen.

Used by the system tests of the command line. It interprets no control sequence, so that tests see each of them.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil

COLUMNS, LINES = 80, 24
PATIENCE = 60.0  # seconds for the command to show a text, or to end
CTRL_D, UP = "\x04", "\x1b[A"


class Typist:
    """A user who runs `command` on a new terminal. `screen`: all that it has written so far, with plain newlines."""

    def __init__(
        self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None, *, columns: int = COLUMNS
    ) -> None:
        self._terminal, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command],  # with a controlling terminal, so that Ctrl-C becomes a signal
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=inherited | {"TERM": "xterm-256color"} | dict(environment or {}),
        )
        os.close(theirs)
        self.screen = ""
        self._written = b""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def type(self, text: str | bytes) -> None:
        """Press the keys of `text`."""
        os.write(self._terminal, text.encode() if isinstance(text, str) else text)

    def interrupt(self) -> None:
        """Press Ctrl-C when the command sleeps: Python notices a signal late that arrives just before it waits."""
        process = psutil.Process(self._process.pid)
        while process.status() != psutil.STATUS_SLEEPING:
            time.sleep(0.001)
        self.type("\x03")

    def see(self, text: str) -> str:
        """Wait until the command shows `text` after what was seen before, and return all up to its end."""
        while (at := self.screen.find(text, self._seen)) < 0:
            assert self._read(), f"the command ended without {text!r}; it wrote {self.screen!r}"
        before, self._seen = self._seen, at + len(text)
        return self.screen[before : self._seen]

    def end(self) -> int:
        """Wait until the command has ended, and return its exit code."""
        while self._read():
            pass
        return self._process.wait(PATIENCE)

    def _read(self) -> bool:
        """Read what the command has written next. Returns False when it has closed the terminal."""
        assert select.select([self._terminal], [], [], PATIENCE)[0], f"the command shows nothing after {self.screen!r}"
        try:
            data = os.read(self._terminal, 1 << 16)
        except OSError:  # Linux reports EIO when no process has the terminal open any more
            return False
        self._written += data  # decoded as a whole, because a read may end within a character
        self.screen = self._written.decode("utf-8", "backslashreplace").replace("\r\n", "\n")
        return bool(data)


class Screen(NamedTuple):
    """The end of a command on a terminal: the text that it wrote, and its exit code."""

    text: str
    returncode: int


def on_terminal(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, *, columns: int = COLUMNS
) -> Screen:
    """Run `command` with its three streams on a new terminal until it ends."""
    with Typist(command, environment, columns=columns) as user:
        returncode = user.end()
        return Screen(user.screen, returncode)
