"""Parses texts of the command line: programs, arguments, processes, priorities, limits and messages.

Used by the commands and by the parser of their options. It never contacts the daemon.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from ipc.errors import BadArguments
from ipc.frames import MAX_FRAME
from ipc.syscalls import Limits


def program_path(program: str) -> str:
    """Make a path absolute, because the daemon has another working folder. Return the name of a program unchanged."""
    from pathlib import Path

    file, colon, name = program.partition(":")
    if "/" not in file and not file.endswith(".py"):
        return program
    return f"{Path(file).expanduser().resolve()}{colon}{name}"


def named_argument(argument: str) -> tuple[str, Any]:
    """Parse an argument by name, such as question=Why. Raises `BadArguments`."""
    name, equals, text = argument.partition("=")
    if not equals or not name:
        raise BadArguments(f"-a takes NAME=VALUE, got {argument!r}")
    return name, text


def weight(text: str) -> tuple[str, float]:
    """Parse the weight of an owner, such as alice=2. Raises `BadArguments`."""
    owner, equals, number = text.rpartition("=")
    try:
        if owner and equals:
            return owner, float(number)
    except ValueError:
        pass
    raise BadArguments(f"--weight takes OWNER=NUMBER, got {text!r}")


def read_text(source: str) -> str:
    """The text of the file `source`, or of standard input if `source` is `-`. Raises `BadArguments`.

    The text is UTF-8, whatever the locale, and no longer than a request to the daemon can be.
    """
    name = "standard input" if source == "-" else source
    try:
        if source == "-":
            data = sys.stdin.buffer.read(MAX_FRAME + 1)
        else:
            with open(source, "rb") as file:
                data = file.read(MAX_FRAME + 1)
    except OSError as error:
        raise BadArguments(f"cannot read {name}: {error.strerror}") from None
    return decode_text(data, name)


def read_line() -> str | None:
    """The next line of standard input, without its end; None at the end of the input. Raises `BadArguments`."""
    try:
        data = sys.stdin.buffer.readline(MAX_FRAME + 1)
    except OSError as error:
        raise BadArguments(f"cannot read standard input: {error.strerror}") from None
    return decode_text(data, "a line of standard input").rstrip("\r\n") if data else None


def decode_text(data: bytes, name: str) -> str:
    """The text in `data`, which `name` supplied. Raises `BadArguments`."""
    if len(data) > MAX_FRAME:
        raise BadArguments(f"{name} has more than {MAX_FRAME} bytes, which is more than a request can carry")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start + 1} is 0x{data[error.start]:02x}"
        raise BadArguments(f"{name} is not UTF-8 text: {wrong}; convert it first, for example with iconv") from None


def not_text(arguments: Sequence[str]) -> str | None:
    """The first of `arguments` that is not UTF-8, with its wrong bytes as escapes; None if all are text."""
    for argument in arguments:
        data = os.fsencode(argument)
        shown = data.decode("utf-8", "backslashreplace")
        if shown.encode() != data:
            return shown
    return None


def body(text: str | None) -> Any:
    """Parse the body of a message: JSON, or else the text itself. `-` stands for the text on standard input."""
    if text is None:
        return None
    text = read_text(text) if text == "-" else text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return text


def limits(given: Sequence[str]) -> Limits | None:
    """Parse limits such as tokens=100; None if there are none. Raises `BadArguments`."""
    if not given:
        return None
    values = dict(named_argument(argument) for argument in given)
    try:
        return msgspec.convert(values, Limits, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(Limits.__struct_fields__)
        raise BadArguments(f"--limit takes NAME=NUMBER: {error}; the names are {known}") from None


def target(text: str) -> tuple[int, str | None]:
    """Parse a process such as 12, or one of its threads such as 12:0-1."""
    pid, colon, thread = text.partition(":")
    return int(pid), thread if colon else None


def recipient(text: str) -> int | str:
    """Parse a recipient: a process number, or else a name."""
    return int(text) if text.isdecimal() else text


def priority(text: str) -> tuple[int, bool]:
    """Parse a priority; with a plus sign, as in +5, the second value is true: add to the current priority."""
    return int(text), text.startswith("+")
