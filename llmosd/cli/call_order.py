"""Puts the tokens of model calls that run at the same time in order: one call after the other.

Used by `llmosd.cli.task_text`. Events say which call a token belongs to, but not when a call ends. So this module
holds the tokens of all calls but the current one, and passes on to the next call when the current one seems to have
ended. It never drops a token, and never prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

# The current call seems to have ended when it has made no token
EVENTS = 3  # while another call made so many events,
SECONDS = 5.0  # or for so long.
MOST_HELD = 1 << 20  # characters; with more, the next call is current in any case


class ModelCall(NamedTuple):
    """A model call: the number `call` of process `pid`."""

    pid: int
    call: int


class CallOrder:
    """The current call, and the tokens of the others in the order in which these calls began."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._current: ModelCall | None = None
        self._heard = 0.0  # when the last token of the current call arrived
        self._held: dict[ModelCall, list[str]] = {}
        self._size = 0  # characters held
        self._since: dict[ModelCall, int] = {}  # events of each other call since the last token of the current one

    def add(self, call: ModelCall, text: str) -> Iterator[tuple[ModelCall, str]]:
        """Take a token, and yield the texts that can be printed now."""
        if self._current is None:
            self._current = call
        if call == self._current:
            self._heard = self._clock()
            self._since.clear()
            yield call, text
            return
        self._held.setdefault(call, []).append(text)
        self._size += len(text)
        self._since[call] = self._since.get(call, 0) + 1
        if self._since[call] >= EVENTS or self._clock() - self._heard >= SECONDS or self._size > MOST_HELD:
            yield self._next()

    def rest(self) -> Iterator[tuple[ModelCall, str]]:
        """Yield all texts that are still held, because no token follows."""
        while self._held:
            yield self._next()

    def _next(self) -> tuple[ModelCall, str]:
        self._current = next(iter(self._held))
        self._heard = self._clock()
        self._since.clear()
        text = "".join(self._held.pop(self._current))
        self._size -= len(text)
        return self._current, text
