"""Ticks: regular interruptions of the main thread, by a signal of the daemon's own.

The watchdog starts them. A thread of Linux sends the signal, so an agent that sets an alarm or a timer of its own stops
nothing. `SIGALRM` is used only to end an agent that catches everything, and only while it is ended. This module never
looks at what it interrupts.
"""

from __future__ import annotations

import _thread
import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, cast

from kernel.event_loop.signals import SIGNALS, ignore, set_handler, set_timer

TICK = int(signal.SIGRTMAX) - 3  # debuggers and libraries use the first and the last real-time signals
FAST = 0.0001  # seconds between fast ticks

Handler = Callable[[int, FrameType | None], Any]


class Ticks:
    """Calls `handler` in the main thread, every `seconds` seconds, between two bytecodes."""

    def __init__(self, handler: Handler, loop: asyncio.AbstractEventLoop) -> None:
        self._handler = handler
        self._loop = loop
        self._seconds = 0.0
        self._answered = True
        self._fast = False
        self._stop = threading.Event()
        self._previous: Any = None
        self._main = 0

    def start(self, seconds: float) -> None:
        """Begin to tick. Call this in the main thread."""
        self._seconds = seconds
        self._main = threading.get_ident()
        self._previous = set_handler(TICK, self._tick)
        SIGNALS.protect(TICK)
        threading.Thread(target=self._run, name="llmosd watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop for good, and restore the previous handler."""
        self._stop.set()
        self.slowly()
        SIGNALS.release(TICK)
        set_handler(TICK, self._previous)

    def every(self, seconds: float) -> None:
        """Change the time between ticks, after the next one."""
        self._seconds = seconds

    def fast(self) -> None:
        """Tick so often that code between two `except` blocks is interrupted again."""
        self._fast = True
        SIGNALS.release(signal.SIGALRM)
        set_handler(signal.SIGALRM, self._handler)
        set_timer(signal.ITIMER_REAL, FAST, FAST)

    def slowly(self) -> None:
        """Undo `fast`."""
        if self._fast:
            self._fast = False
            set_timer(signal.ITIMER_REAL, 0)
            set_handler(signal.SIGALRM, ignore)
            SIGNALS.protect(signal.SIGALRM)

    def _tick(self, number: int, frame: FrameType | None) -> None:
        self._answered = True
        self._handler(number, frame)

    def _run(self) -> None:
        """The code of the thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._send()

    def _send(self) -> None:
        while not self._stop.wait(self._seconds):
            if signal.getsignal(TICK) != self._tick:  # the default would end the daemon
                self._loop.call_soon_threadsafe(SIGNALS.check, None, self._loop)
                continue
            if not self._answered:  # the main thread may block the signal; this needs none, but ends no call of C code
                _thread.interrupt_main(cast("signal.Signals", TICK))
            self._answered = False
            if not self._stop.is_set():
                signal.pthread_kill(self._main, TICK)
