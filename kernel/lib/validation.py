"""Checks of arguments of system calls beyond their types, which `kernel.lib.call_checks` checks for agents.

Used by the handlers of calls whose arguments the kernel stores. A time that is not a number would break the order of
the timers, and text that cannot be encoded would break every list that shows the text. The handlers of `send`, `call`
and `reply` use them in place of the other checks. No function here looks anything up.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, cast

from ipc.errors import InvalidCall
from ipc.foreign import shown

LOWEST, HIGHEST = -20, 20  # priorities
LONGEST = 10**300  # seconds as an int, which must fit into a float
TEXT = ("__eq__", "__hash__", "__len__", "isascii", "encode")  # methods that tables of the kernel call


def check_seconds(seconds: Any, what: str) -> float | None:
    """`seconds`, or None if it is infinite. `what` describes the argument in the error. Raises `InvalidCall`."""
    kind = type(seconds)
    if kind is not float and issubclass(kind, float):
        seconds = float.__float__(seconds)  # a subclass may compare and add in its own way, and timers are compared
    if not ((kind is int or issubclass(kind, float)) and seconds >= 0 and (kind is not int or seconds < LONGEST)):
        raise InvalidCall(f"{what} is {shown(seconds)}; pass a number of seconds, which cannot be negative")
    return None if seconds == math.inf else cast("float", seconds)


def check_timeout(timeout: Any) -> float | None:
    """`timeout`, checked by `check_seconds`. None, also as the result, means no limit."""
    return None if timeout is None else check_seconds(timeout, "timeout")


def check_priority(priority: Any) -> None:
    """Raise `InvalidCall` unless `priority` is an int from `LOWEST` to `HIGHEST`."""
    if type(priority) is not int or not LOWEST <= priority <= HIGHEST:
        raise InvalidCall(
            f"priority is {shown(priority)}; pass a whole number from {LOWEST} to {HIGHEST}",
            lowest=LOWEST,
            highest=HIGHEST,
        )


def check_text(text: Any, what: str, most: int, least: int = 0) -> None:
    """Raise `InvalidCall` unless `text` is a `str` of `least` to `most` characters that can be encoded."""
    if is_text(text) and least <= len(text) <= most and (text.isascii() or is_encodable(text)):
        return
    raise InvalidCall(f"{what} is {shown(text)}; pass text of {least} to {most} characters that UTF-8 can encode")


def is_text(value: Any) -> bool:
    """Whether `value` is a `str`, or a member of a plain enumeration of texts.

    No list that shows a text of another class can be encoded, and its methods may do anything.
    """
    kind = type(value)
    return kind is str or (
        issubclass(kind, str)
        and issubclass(kind, Enum)
        and all(getattr(kind, name) is getattr(str, name) for name in TEXT)
    )


def check_label(text: Any, what: str, most: int) -> None:
    """Raise `InvalidCall` unless `text` is a `str` of at most `most` characters, all of which can be printed."""
    check_text(text, what, most)
    if not text.isprintable():
        raise InvalidCall(f"{what} is {text!a:.100}; pass text without control characters and line breaks")


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode `text`."""
    try:
        text.encode()
    except UnicodeEncodeError:  # an unpaired surrogate
        return False
    return True
