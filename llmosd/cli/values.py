"""Parses texts of the command line: programs, arguments, priorities and limits.

Used by the commands and by the parser of their options. It never contacts the daemon.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import msgspec

from ipc.errors import BadArguments
from ipc.syscalls import Limits

LEAST, MOST = -(1 << 63), (1 << 64) - 1  # the integers that a request can carry
MOST_DIGITS = 30  # of a number in a complaint


def program_path(program: str) -> str:
    """Make a path absolute. Return the name of a program unchanged. Raises `BadArguments`."""
    file, colon, name = program.partition(":")
    if "/" not in file and not file.endswith(".py"):
        return program
    return f"{absolute_path(os.path.expanduser(file))}{colon}{name}"


def absolute_path(path: str) -> str:
    """The absolute form of `path`, because the daemon has another working folder. Raises `BadArguments`."""
    try:
        return os.path.realpath(path)
    except OSError as error:
        raise BadArguments(f"cannot find {path} from the working folder: {error.strerror}") from None


def named_argument(argument: str, option: str = "-a", form: str = "NAME=VALUE") -> tuple[str, str]:
    """Parse an argument by name, such as question=Why. Raises `BadArguments`."""
    name, equals, text = argument.partition("=")
    if not equals or not name:
        raise BadArguments(f"{option} takes {form}, got {argument!r}")
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


def not_sendable(arguments: Sequence[str]) -> str | None:
    """The reason why one of `arguments` cannot be sent, if one is too large or not text in the locale; else None."""
    for argument in arguments:
        for digits in re.findall(r"-?\d+", argument):
            if len(digits) > MOST_DIGITS or not LEAST <= int(digits) <= MOST:
                return f"the number {digits[:MOST_DIGITS]}{'...' * (len(digits) > MOST_DIGITS)} is too large"
        if argument.isascii() or not any("\ud800" <= character <= "\udfff" for character in argument):
            continue
        try:
            text = os.fsencode(argument).decode()
        except UnicodeDecodeError:
            shown = os.fsencode(argument).decode("utf-8", "backslashreplace")
            return f"the argument {shown} is not UTF-8 text"
        return f"the locale is not UTF-8, but the argument {text} is; set LC_ALL=C.UTF-8"
    return None


def limits(given: Sequence[str]) -> Limits | None:
    """Parse limits such as tokens=100; None if there are none. Raises `BadArguments`."""
    if not given:
        return None
    values = dict(named_argument(argument, "--limit", "NAME=NUMBER") for argument in given)
    known = Limits.__struct_fields__
    for name in values:
        if name not in known:
            from kernel.programs.suggestion import did_you_mean, similar

            hint = did_you_mean(similar(name, known))
            raise BadArguments(f"no limit {name}; {hint}the limits are {', '.join(known)}")
    try:
        return msgspec.convert(values, Limits, strict=False)
    except msgspec.ValidationError as error:
        raise BadArguments(f"--limit takes NAME=NUMBER: {error}") from None


def seconds(text: str) -> float:
    """Parse a time in seconds. Raises `ValueError`, also for a negative time."""
    number = float(text)
    if not number >= 0:
        raise ValueError(text)
    return number


def priority(text: str) -> tuple[int, bool]:
    """Parse a priority; with a plus sign, as in +5, the second value is true: add to the current priority."""
    return int(text), text.startswith("+")
