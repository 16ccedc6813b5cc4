"""The last resort: ends the daemon if its stop takes too long, for example because an agent holds the loop in C code.

Armed when a stop begins. In time, a thread writes the stacks of all threads to `crash.log` and ends the process with
exit code 1. If no thread of Python can run, because C code holds the interpreter, a thread of `faulthandler` does the
same. Nothing that an agent does can hold it up, and nothing disarms it.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import IO, Any

import structlog

MAX_FRAMES = 1000  # of the stack of the loop's thread
IN_C_SECONDS = 5.0  # after which the thread of faulthandler acts, when the thread of Python did not

log = structlog.get_logger("llmosd")


class LastResort:
    """`file`: receives the stacks. `before_exit`: writes the log, within a bounded time."""

    def __init__(
        self,
        file: IO[Any],
        before_exit: Callable[[], None] = lambda: None,
        *,
        exit_now: Callable[[int], Any] = os._exit,
        exit_in_c: Callable[..., None] = faulthandler.dump_traceback_later,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._before_exit = before_exit
        self._exit_now = exit_now
        self._exit_in_c = exit_in_c
        self._clock = clock
        self._changed = threading.Condition(threading.RLock())
        self._end: float | None = None

    def arm(self, seconds: float) -> None:
        """End the process in `seconds`, unless it was to end sooner already. Callable from any thread."""
        with self._changed:
            end = self._clock() + seconds
            if self._end is not None and self._end <= end:
                return
            first, self._end = self._end is None, end
            self._exit_in_c(seconds + IN_C_SECONDS, exit=True, file=self._file)
            if first:
                threading.Thread(target=self._wait, name="llmosd last resort", daemon=True).start()
            else:
                self._changed.notify_all()

    def _wait(self) -> None:
        with self._changed:
            while self._end is not None and (left := self._end - self._clock()) > 0:
                self._changed.wait(left)
        try:
            log.error("the daemon did not stop in time; it ends now", stacks=getattr(self._file, "name", ""))
            self._write_stacks()
            self._before_exit()
        finally:
            self._exit_now(1)

    def _write_stacks(self) -> None:
        """Write the stack of the loop's thread first: faulthandler writes 100 threads, the newest first.

        Neither reads source files, since their disk may hang.
        """
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        if frame is not None:
            places = [
                f'  File "{at.f_code.co_filename}", line {line} in {at.f_code.co_name}\n'
                for at, line in itertools.islice(traceback.walk_stack(frame), MAX_FRAMES)
            ]
            text = "".join(["Main thread (most recent call first):\n", *places])
            os.write(self._file.fileno(), text.encode("utf-8", "backslashreplace"))
        faulthandler.dump_traceback(file=self._file, all_threads=True)
