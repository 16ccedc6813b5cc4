"""The text of an error that a file or package raised while it was loaded.

Used by the program loader and by tools. The text names the file and the line, and never shows the code that loads.
"""

from __future__ import annotations

import os
import traceback

FRAMES = 3  # the most that a text shows of each error

_HIDDEN = (os.path.dirname(__file__) + os.sep, "<frozen importlib")


def load_error(error: BaseException) -> str:
    """The traceback of `error` as text, without the frames of the loader and of Python's import system."""
    report = traceback.TracebackException.from_exception(error)
    pending: list[traceback.TracebackException | None] = [report]
    seen: set[int] = set()
    while pending:
        part = pending.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        frames = [frame for frame in part.stack if not frame.filename.startswith(_HIDDEN)]
        part.stack = traceback.StackSummary.from_list(frames[-FRAMES:])
        pending += [part.__cause__, part.__context__, *(part.exceptions or ())]
    return "".join(report.format())
