"""The threads that agents start: they know whether anyone waits for their end.

Made by `Threads.start_worker`. If one fails while nobody awaits it, its process ends with that error.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

from kernel.process import Thread


class Worker(Thread):
    """A thread that counts who asked to be told of its end. `awaited` counts them, also once it has ended."""

    __slots__ = ("awaited",)

    def __init__(self, *args: Any, **options: Any) -> None:
        self.awaited = 0
        super().__init__(*args, **options)

    # Whoever awaits a future asks it by these two, the tasks and the gathering of asyncio included.

    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: contextvars.Context | None = None) -> None:
        self.awaited += 1
        super().add_done_callback(fn, context=context)

    def remove_done_callback(self, fn: Callable[[Any], object], /) -> int:
        removed = super().remove_done_callback(fn)
        self.awaited -= removed
        return removed
