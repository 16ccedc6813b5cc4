"""Reads files and standard input for a command, never more than a request to the daemon can carry.

Used by `llmosd.cli.arguments` and by `chat`. Text is UTF-8, whatever the locale.
"""

from __future__ import annotations

import sys

from ipc.errors import BadArguments
from ipc.frames import MAX_FRAME

STANDARD_INPUT = "standard input"


def read_bytes(source: str) -> bytes:
    """The content of the file `source`, or of standard input if `source` is `-`. Raises `BadArguments`."""
    name = STANDARD_INPUT if source == "-" else source
    try:
        if source == "-":
            return _bounded(sys.stdin.buffer.read(MAX_FRAME + 1), name)
        with open(source, "rb") as file:
            return _bounded(file.read(MAX_FRAME + 1), name)
    except OSError as error:
        raise BadArguments(f"cannot read {name}: {error.strerror}") from None


def read_line() -> str | None:
    """The next line of standard input, without its end; None at the end of the input. Raises `BadArguments`."""
    try:
        data = _bounded(sys.stdin.buffer.readline(MAX_FRAME + 1), "a line of standard input")
    except OSError as error:
        raise BadArguments(f"cannot read {STANDARD_INPUT}: {error.strerror}") from None
    return line_text(data).rstrip("\r\n") if data else None


def line_text(data: bytes) -> str:
    """The text of a line of standard input. Raises `BadArguments`."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start + 1} is 0x{data[error.start]:02x}"
        raise BadArguments(f"a line of standard input is not UTF-8 text: {wrong}; convert it first") from None


def _bounded(data: bytes, name: str) -> bytes:
    if len(data) > MAX_FRAME:
        raise BadArguments(f"{name} has more than {MAX_FRAME} bytes, which is more than a request can carry")
    return data
