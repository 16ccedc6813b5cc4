"""Checks of what an agent gives as it likes: a call from inside the loop is not held against the types of its fields.

Used by the handlers of calls whose arguments stay with the kernel: a time that is no number would break the order of
its timers, and a text that cannot be encoded every list in which it is shown. What comes from a socket passes.
"""

from __future__ import annotations

import math
from typing import Any

from ipc.errors import InvalidCall

LOWEST, HIGHEST = -20, 20  # priorities


def check_seconds(seconds: Any, what: str) -> float | None:
    """`seconds` as they are; None if they never pass. Raises `InvalidCall`."""
    if not (isinstance(seconds, int | float) and seconds >= 0):
        raise InvalidCall(f"{what} is {seconds!r:.100}; it is a number of seconds and cannot be negative")
    return None if seconds == math.inf else seconds


def check_timeout(timeout: Any) -> float | None:
    """The same for a time limit, which may be None."""
    return None if timeout is None else check_seconds(timeout, "timeout")


def check_priority(priority: Any) -> None:
    """Raises `InvalidCall`."""
    if type(priority) is not int or not LOWEST <= priority <= HIGHEST:
        raise InvalidCall(
            f"a priority is a whole number from {LOWEST} to {HIGHEST}, which {priority!r:.100} is not",
            lowest=LOWEST,
            highest=HIGHEST,
        )


def check_text(text: Any, what: str, most: int, least: int = 0) -> None:
    """Raises `InvalidCall` for what is no text of `least` to `most` characters, or cannot be encoded."""
    if isinstance(text, str) and least <= len(text) <= most and (text.isascii() or _encodable(text)):
        return
    raise InvalidCall(f"{what} is a text of {least} to {most} characters, which {text!a:.100} is not")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a surrogate without its other half
        return False
    return True
