"""The signals of the daemon. A thread receives them, so they arrive even while an agent holds the loop.

TERM and INT stop the daemon, HUP reloads the settings, and USR1 writes a report to the log. USR2 has no meaning. QUIT
ends the daemon at once, with the stacks of its threads in `crash.log`, even if C code holds the interpreter. TTOU and
TTIN are ignored: a terminal must not stop a daemon in the background that writes to it. A child that executes another
program gets the default actions back, except of the ignored two. This module decides nothing itself.

Python's own handler writes the number of each signal to a pipe ("wakeup descriptor"), which the thread reads. The loop
has a pipe of its own; the thread passes all numbers on to it, for handlers that agents add to the loop.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import IO, Any

from kernel.event_loop.signals import SIGNALS, set_wakeup_fd

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
IGNORED = (signal.SIGTTOU, signal.SIGTTIN)


class Signals:
    """Receives the signals of this process from now on. Those that arrive before `attach` wait for it.

    `on_stop` is called on the thread of the signals for each signal that stops the daemon, with the number of such
    signals so far.
    """

    def __init__(self) -> None:
        self.on_stop: Callable[[int], None] = lambda count: None
        self._early: list[int] = []
        self._attached: tuple[asyncio.AbstractEventLoop, Callable[[signal.Signals], None]] | None = None
        self._forward = -1
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in HANDLED:
            signal.signal(number, self._arrived)
            SIGNALS.protect(number)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=self._serve, name="llmosd signals", daemon=True).start()

    def attach(self, callback: Callable[[signal.Signals], None]) -> None:
        """Call `callback` on the running loop for each signal. Called by the main thread whenever the loop starts."""
        self.repair()
        _let_handlers_run()  # of signals that arrived before the last line: now `_early` has them
        self._attached = asyncio.get_running_loop(), callback
        early, self._early = self._early, []
        for number in early:
            callback(signal.Signals(number))

    def detach(self) -> None:
        """The loop has stopped, and has closed its pipe."""
        self._forward = -1

    def repair(self) -> list[str]:
        """Take the signals back from an agent that has replaced a handler. Returns the names of these signals."""
        self._take_descriptor()
        lost = [number for number in HANDLED if not callable(signal.getsignal(number))]
        for number in lost:
            signal.signal(number, self._arrived)
        return [number.name for number in lost]

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        """The handler that Python calls in the main thread. After `attach`, the thread handles the signal instead.

        The loop takes the wakeup descriptor whenever it begins to run, also after code of an agent has left it. A
        signal that arrives then has not reached the thread.
        """
        if self._attached is None:
            self._early.append(number)
        elif self._take_descriptor():
            with suppress(OSError):  # the pipe is full of signals
                os.write(self._writing, bytes([number]))

    def _take_descriptor(self) -> bool:
        """Take the wakeup descriptor back from the loop. Returns whether the loop had it."""
        before = set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        if before == self._writing:
            return False
        self._forward = before
        return True

    # ---- on the thread

    def _serve(self) -> None:
        stops = 0
        while True:
            for number in os.read(self._reading, 1024):
                if number in STOPPING:
                    stops += 1
                    with suppress(Exception):  # the system may have no thread left: the loop must learn of the signal
                        self.on_stop(stops)
                if number in HANDLED and self._attached is not None:
                    loop, callback = self._attached
                    with suppress(RuntimeError):  # the loop is closed
                        loop.call_soon_threadsafe(callback, signal.Signals(number))
                if self._forward >= 0:
                    with suppress(OSError):  # the loop has ended, or its pipe is full of signals
                        os.write(self._forward, bytes([number]))


def dump_on_quit(file: IO[Any]) -> None:
    """Make QUIT write the stacks of all threads to `file`, and then end the process, without any code of Python."""
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    faulthandler.register(signal.SIGQUIT, file, all_threads=True, chain=True)


def _let_handlers_run() -> None:
    """Python calls the handlers of pending signals before it calls a function."""
