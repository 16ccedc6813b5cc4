"""Where a thread of Linux is in the code of users.

Used for files that take long to load. It reads the stacks of other threads, and never changes or stops them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

from kernel.lib.failures import LIBRARIES, OUR_PACKAGES, bounded

MAX_PLACE = 500  # characters


def place_in(thread: int) -> str:
    """The place "FILE:LINE" at which `thread` is, in the innermost file that is no library; "" if there is none."""
    for frame in _stack(thread):
        file, module = frame.f_code.co_filename, str(frame.f_globals.get("__name__"))
        if not file.startswith((*LIBRARIES, "<")) and module.partition(".")[0] not in OUR_PACKAGES:
            return bounded(f"{file}:{frame.f_lineno}", MAX_PLACE)
    return ""


def is_importing(thread: int) -> bool:
    """Whether `thread` is within an import by Python's import system."""
    return any(frame.f_code.co_filename.startswith("<frozen importlib") for frame in _stack(thread))


def _stack(thread: int) -> Iterator[FrameType]:
    """The frames of `thread`, the innermost first."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back
