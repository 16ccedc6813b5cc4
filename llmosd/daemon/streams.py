"""The standard streams of the daemon: no read of them waits for a terminal, and no write for a reader.

Called once, before anything is logged. Standard input becomes `/dev/null`, so `input()` raises EOFError. Text for
standard output and standard error is queued for the thread of a `LogWriter`. The descriptors 1 and 2 may be pipes
or terminals, which can block: then they are replaced by pipes that a thread always empties, because libraries in C and
the Linux processes that agents start write to them directly. It never escapes or changes text.
"""

from __future__ import annotations

import io
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from llmosd.daemon.log_writer import STALLED_SECONDS, LogWriter

STDIN, STDOUT, STDERR = range(3)
READ_SIZE = 65_536
LAST_READ_SECONDS = 0.5  # that `Streams.close` waits for text that other programs have written to the pipes

LAST_WRITE_SECONDS = 0.1  # that it waits for the reader of the output, after it has waited for the reader of the log


class _QueuedFile(io.RawIOBase):
    """The file below `sys.stdout` or `sys.stderr`."""

    def __init__(self, number: int, writer: LogWriter, terminal: bool) -> None:
        self._number = number
        self._writer = writer
        self._terminal = terminal

    def write(self, data: Any, /) -> int:
        content = bytes(data)
        self._writer.write(content)
        return len(content)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return self._terminal


class _Pipe:
    """A pipe in place of a standard descriptor, and the thread that passes its text on."""

    def __init__(self, number: int, writer: LogWriter) -> None:
        self._reading, writing = os.pipe()
        os.dup2(writing, number)
        os.close(writing)
        self._writer = writer
        threading.Thread(target=self._serve, name="llmosd output", daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while data := os.read(self._reading, READ_SIZE):
                self._writer.write(data)

    def wait_until_empty(self, end: float) -> None:
        """Wait until the thread has read everything, until the time `end` at most."""
        with suppress(OSError, ValueError):
            while select.select([self._reading], [], [], 0)[0] and time.monotonic() < end:
                time.sleep(0.005)


class Streams:
    """The streams of one daemon. `error` writes its log."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Replace the standard streams of this Python and of this process."""
        _close_input()
        self.output, self.error = LogWriter(STDOUT), LogWriter(STDERR)
        self.terminal = os.isatty(STDERR)  # whether people read the log
        self._pipes: list[_Pipe] = []
        for name, number, writer in (("stdout", STDOUT, self.output), ("stderr", STDERR, self.error)):
            terminal = os.isatty(number)
            file = io.BufferedWriter(_QueuedFile(number, writer, terminal))
            stream = io.TextIOWrapper(file, "utf-8", "backslashreplace", line_buffering=True)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
            if _may_block(number, environment):
                self._pipes.append(_Pipe(number, writer))

    def close(self) -> None:
        """Write what the readers take at once. Bounded: what they do not read is lost."""
        with suppress(OSError, ValueError):
            sys.__stdout__.flush()  # type: ignore[union-attr]
            sys.__stderr__.flush()  # type: ignore[union-attr]
        end = time.monotonic() + LAST_READ_SECONDS
        for pipe in self._pipes:
            pipe.wait_until_empty(end)
        # Both threads write meanwhile: a reader of the output has had its time when the second wait begins.
        read = self.error.close()
        self.output.close(stalled=STALLED_SECONDS if read else LAST_WRITE_SECONDS)


def _close_input() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, STDIN)
    if null != STDIN:
        os.close(null)
    for number in (STDOUT, STDERR):  # closed ones, so that no socket or file gets their numbers
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, and that is `number`
    sys.stdin = sys.__stdin__ = open(STDIN, encoding="utf-8", closefd=False)  # type: ignore[misc] # noqa: SIM115


def _may_block(number: int, environment: Mapping[str, str]) -> bool:
    """Whether a write to the descriptor may wait for a reader. systemd's journal always reads.

    Where writes cannot block, the descriptor stays as it is: then the last words of a crash in C are not lost.
    """
    kind = os.fstat(number).st_mode
    if stat.S_ISSOCK(kind):
        return "JOURNAL_STREAM" not in environment
    return stat.S_ISFIFO(kind) or os.isatty(number)
