"""The standard streams of a command, made safe before anything uses them.

A closed descriptor is replaced, so that no socket or file gets its number. A character that the encoding lacks is
written as an escape. Text for people goes through `printable`: all of standard error, and standard output if it is a
terminal. A failed write to standard output ends the command with one sentence, and one to standard error is ignored.
It never contacts the daemon.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable
from typing import IO, Any

from llmosd.printable import printable

STDIN, STDOUT, STDERR = range(3)
DONE, FAILED, INTERRUPTED = 0, 1, 130


class CannotWrite(OSError):
    """A write to standard output failed, for example because the disk is full."""


class _OutputFile(io.FileIO):
    """Standard output. Raises `CannotWrite`, or `BrokenPipeError` if the reader of a pipe has gone."""

    def write(self, data: Any, /) -> int:
        while True:
            try:
                return os.write(self.fileno(), data)
            except BrokenPipeError:
                raise
            except BlockingIOError:  # another process has made the terminal or the pipe non-blocking
                select.select([], [self], [])
            except OSError as error:
                raise CannotWrite(error.errno, error.strerror) from None


class _DispensableFile(io.FileIO):
    """Standard error. What cannot be written is lost, since there is no place to report it."""

    def write(self, data: Any, /) -> int:
        try:
            return os.write(self.fileno(), data)
        except OSError:
            return len(data)


class EscapedText(io.TextIOWrapper):
    """Text for people: characters that could control a terminal are written as their escapes."""

    def write(self, text: str, /) -> int:
        """Write `text` with escapes. Returns the number of characters of `text`."""
        super().write(printable(text))
        return len(text)


def prepare_command() -> None:
    """Prepare the streams of a command. A read or write of a stream that was closed fails, as it would without us."""
    _replace_closed(reading=os.O_WRONLY, writing=os.O_RDONLY)
    terminal = os.isatty(STDOUT)
    kind = EscapedText if terminal else io.TextIOWrapper
    sys.stdout = _text(kind, _OutputFile(STDOUT, "w", closefd=False), sys.stdout, line_buffering=terminal)
    sys.stderr = _text(EscapedText, _DispensableFile(STDERR, "w", closefd=False), sys.stderr, line_buffering=True)
    if sys.stdin is None:
        sys.stdin = open(STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115


def guard(program: str, command: Callable[[], int]) -> int:
    """Run a command, write its remaining output, and return its exit code. Reports output that cannot be written."""
    code = DONE
    try:
        try:
            code = command()
        except SystemExit as ended:  # raised by argparse, after a help text or an error
            code = _exit_code(ended)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        pass  # the reader of our output, such as `head`, has seen enough
    except CannotWrite as error:
        print(f"{program}: cannot write the output: {error.strerror}", file=sys.stderr)
        code = code or FAILED
    _discard_output()
    return code


def write_unescaped(text: str, stream: IO[str] | None = None) -> None:
    """Write our own control sequences, to standard output by default. All else in `text` must be printable."""
    stream = stream or sys.stdout
    if isinstance(stream, EscapedText):
        io.TextIOWrapper.write(stream, text)
    else:
        stream.write(text)


def encodable(text: str) -> bool:
    """Whether standard output can show every character of `text`."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _replace_closed(*, reading: int, writing: int) -> None:
    """Open `/dev/null`, with the given flags, in place of each standard descriptor that is closed."""
    for number, flags in ((STDIN, reading), (STDOUT, writing), (STDERR, writing)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free number, and that is `number`


def _text(
    kind: type[io.TextIOWrapper], file: io.FileIO, before: IO[str] | None, *, line_buffering: bool
) -> io.TextIOWrapper:
    encoding = getattr(before, "encoding", None) or "utf-8"
    return kind(io.BufferedWriter(file), encoding, "backslashreplace", line_buffering=line_buffering)


def _exit_code(ended: SystemExit) -> int:
    if isinstance(ended.code, str):
        print(ended.code, file=sys.stderr)
        return FAILED
    return ended.code or DONE


def _discard_output() -> None:
    """Drop the output that is still buffered: the interpreter would try to write it when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
