"""A pseudo-terminal under test: runs a command on it, and collects everything that would appear on the screen.

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

COLUMNS, LINES = 80, 24
END_TIMEOUT = 60.0  # seconds for the command to end


class Screen:
    """The end of a command on a terminal: the text that it wrote, and its exit code."""

    def __init__(self, text: str, returncode: int) -> None:
        self.text = text
        self.returncode = returncode


def on_terminal(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, *, columns: int = COLUMNS
) -> Screen:
    """Run `command` with its three streams on a new terminal, and return what it wrote, with plain newlines."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    surroundings = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=surroundings | {"TERM": "xterm-256color"} | dict(environment or {}),
        start_new_session=True,
    ) as process:
        os.close(theirs)
        try:
            data = _read_to_end(ours)
            returncode = process.wait(END_TIMEOUT)
        finally:
            process.kill()
            os.close(ours)
    return Screen(data.decode("utf-8", "backslashreplace").replace("\r\n", "\n"), returncode)


def _read_to_end(terminal: int) -> bytes:
    data = b""
    until = time.monotonic() + END_TIMEOUT
    while select.select([terminal], [], [], max(until - time.monotonic(), 0.0))[0]:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # Linux reports EIO when no process has the terminal open any more
            return data
        if not part:
            return data
        data += part
    raise AssertionError(f"the command did not end; it wrote {data!r}")
