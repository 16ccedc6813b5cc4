"""The turn to load programs: one thread has it at a time, and can lose it while it runs a file of a user.

Used by the program loader around all changes of its tables. A file may take long or never end, and nothing can stop its
thread, so another thread that waits takes the turn. It never runs code of a user itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ipc.errors import Busy

PATIENCE = 5.0  # seconds that one file may take while other threads wait for the turn
ATTEMPTS = 3  # of a thread that loses its turn; its file has usually run to the end before the next attempt

T = TypeVar("T")


class TurnLost(Exception):
    """Another thread has taken the turn, so the tables may have changed."""


class Turn:
    """A lock that a waiting thread takes from its holder if one file has run for `patience` seconds."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._changed = threading.Condition()
        self._holder: int | None = None  # a thread of Linux
        self._since = 0.0  # when the holder took the turn or began its present file
        self._file = ""

    def do(self, work: Callable[[], T]) -> T:
        """Call `work` in a turn of this thread; again if it loses the turn. Raises `Busy` after `ATTEMPTS`."""
        for _ in range(ATTEMPTS):
            self._take()
            try:
                return work()
            except TurnLost:
                continue
            finally:
                self._give_back()
        raise Busy(f"files of programs take long to load, at present {self._file}; try again later", retry_after=1.0)

    @contextmanager
    def running(self, file: str) -> Iterator[None]:
        """Other threads may take the turn during this block, which runs `file`. Then its end raises `TurnLost`."""
        with self._changed:
            self._since, self._file = time.monotonic(), file
        try:
            yield
        finally:
            with self._changed:
                if self._holder != threading.get_ident():
                    raise TurnLost

    def _take(self) -> None:
        with self._changed:
            while self._holder is not None:
                left = self._since + self._patience - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            self._holder, self._since = threading.get_ident(), time.monotonic()

    def _give_back(self) -> None:
        with self._changed:
            if self._holder == threading.get_ident():
                self._holder = None
                self._changed.notify()
