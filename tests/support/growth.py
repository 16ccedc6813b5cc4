"""How the work of the kernel grows with a number of things: counted in steps of Python, so no clock is read.

Tests of growth use it. It never sees the loops inside a single function of C, such as `list.index`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Awaitable, Callable
from typing import Any


class Counted:
    """Counts, while it is entered, the lines that Python runs in the files whose paths end with one of `files`."""

    def __init__(self, *files: str) -> None:
        self._files = files
        self.lines = 0

    def __enter__(self) -> Counted:
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _called(self, frame: Any, event: str, argument: Any) -> Any:
        return self._ran if frame.f_code.co_filename.endswith(self._files) else None

    def _ran(self, frame: Any, event: str, argument: Any) -> Any:
        self.lines += 1
        return self._ran


async def exponent(trial: Callable[[int], Awaitable[int]], few: int, many: int) -> float:
    """The power of n with which the lines that `trial(n)` returns grow from `few` to `many`."""
    return math.log(await trial(many) / await trial(few)) / math.log(many / few)
