"""The watchdog: logs agents that hold the loop, and interrupts those that hold it for too long.

A burst is the longest time for which an agent may hold the loop, in a step or in a callback of the loop. The main
thread is interrupted a few times per burst (`ticks.py`). Python then calls `tick` between two bytecodes, and an error
that `tick` raises is raised in the interrupted code (`interruptible.py` decides whether it may be). If that is code of
the kernel, `tick` tries again soon. It cannot interrupt a single long call of C code.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from types import FrameType

import structlog

from ipc.errors import BurstExceeded
from kernel.core.process import Process, Thread
from kernel.dispatch.dispatcher import Dispatcher
from kernel.dispatch.interruptible import Interruptible, callback_frame, place
from kernel.dispatch.ticks import Ticks
from kernel.event_loop.owner import acting_process
from kernel.event_loop.signals import SIGNALS
from kernel.lib.failures import traceback_text

TICKS = 4  # per burst, so that a step is interrupted at most a quarter of a burst too late
MAX_CATCHES = 3  # how often an agent may catch the error in one step; the next time it is ended
SOON = 0.005  # seconds until the next attempt to interrupt code that has held the loop for too long

log = structlog.get_logger("kernel.watchdog")


class Watchdog:
    """Watches the steps of one dispatcher, and the callbacks of its loop.

    It logs each step that overruns its turn by `slow_step` seconds, and interrupts each step or callback that holds the
    loop for `burst` seconds (0: never). It calls `end` to kill a process that has caught the error too often.

    `slow_steps` counts the logged steps. `errors` counts the interruptions by the name of the error.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        slow_step: float,
        burst: float,
        end: Callable[[Process, str, str], None],
        errors: Counter[str],
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._loop = dispatcher.loop
        self._burst = burst
        self._end = end
        self._errors = errors
        self._clock = clock
        self._ticking = Ticks(self.tick, self._loop)
        self._interruptible = Interruptible()
        self._thread: Thread | None = None  # the thread whose step ran at the last tick
        self._cpu = 0.0  # its processor time before that step, which distinguishes one step from the next
        self._callback: FrameType | None = None  # else the frame of the callback that ran at the last tick
        self._since = 0.0  # when the first tick saw that step, or that callback
        self._ticks = 0  # how many further ticks have seen it
        self._raised = 0  # how often it was interrupted
        self._running = False
        self._looking = False
        self.slow_steps = 0
        dispatcher.slow_step = slow_step

    def start(self) -> None:
        """Tick a few times per burst from now on. Call this in the main thread: signals interrupt no other thread."""
        if not self._running:
            self._running = True
            SIGNALS.take_alarms()
            self._interruptible.start()
            if self._burst:
                self._ticking.start(self._burst / TICKS)

    def set_burst(self, burst: float) -> None:
        """Interrupt steps after `burst` seconds from now on; 0: never. Called after `start`."""
        self.stop()
        self._burst = burst
        self.start()

    def stop(self) -> None:
        """Stop ticking, and restore the previous signal handlers."""
        if self._running:
            self._running = False
            if self._burst:
                self._ticking.stop()
            SIGNALS.give_alarms_back()

    def tick(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: raise `BurstExceeded` in the agent that runs in `frame` if it holds the loop too long.

        An agent that has caught the error `MAX_CATCHES` times in one step is ended: `tick` raises `CancelledError`,
        which `except Exception` does not catch. From then on the ticks are so frequent that an agent that uses
        `except BaseException` gets the next error before it has left that block.
        """
        if not self._running or self._looking:
            return
        self._looking = True  # a fast tick interrupts another one
        error: BaseException | None = None
        try:
            error = self._look(frame)
        except (
            RecursionError
        ):  # an agent has nested its calls so deeply that a tick has no room: this interrupts it, too
            raise
        except Exception as failure:  # the code that was interrupted may be the kernel's: it must never raise this
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._log_failure, failure)
        finally:
            self._looking = False
        if error is not None:
            raise error

    def _look(self, frame: FrameType | None) -> BaseException | None:
        """The error to raise in the code that runs in `frame`; None if it may go on."""
        process = acting_process()
        SIGNALS.check(process, self._loop)
        if not self._is_the_same(asyncio.current_task(self._loop), frame):
            return None
        held = self._clock() - self._since
        # At least two ticks must see the step: a single tick may be late because the daemon itself was stopped.
        self._ticks += 1
        if held < self._burst or self._ticks < 2:
            return None
        if not self._interruptible.now(frame, self._thread, held / self._burst):
            self._ticking.every(SOON)
            return None
        return self._interruption(process, held, "" if self._thread is not None else place(frame))

    def _is_the_same(self, task: object, frame: FrameType | None) -> bool:
        """Whether this tick interrupts the same step, or the same callback, as the previous one."""
        thread = task if isinstance(task, Thread) else None
        callback = callback_frame(frame) if thread is None else None
        if thread is self._thread and callback is self._callback:
            if thread is not None and thread.cpu == self._cpu:
                return True
            if callback is not None:
                return True
        if self._raised > MAX_CATCHES:
            self._ticking.slowly()
        self._ticking.every(self._burst / TICKS)
        self._ticks = self._raised = 0
        self._thread, self._callback = thread, callback
        self._cpu, self._since = thread.cpu if thread is not None else 0.0, self._clock()
        return False

    def _interruption(self, process: Process | None, held: float, callback: str) -> BaseException:
        """The error that interrupts the code that runs. `callback` is the place of a callback; empty in a step."""
        self._raised += 1
        if self._raised == 1:
            self._errors[BurstExceeded.__name__] += 1
            if callback:  # the loop logs it: a signal handler must not wait for the lock of the log
                self._loop.call_soon_threadsafe(self._log_callback, process, held, callback)
        name = "code without a process" if process is None else process.program
        where = f" in a callback at {callback}" if callback else ""
        what = f"{name} held the loop{where} for {held:.1f} s without awaiting; the limit is {self._burst:g} s"
        if self._raised <= MAX_CATCHES:
            return BurstExceeded(
                f"{what}; move long computations into a tool, or give up the loop with `await asyncio.sleep(0)`",
                pid=0 if process is None else process.pid,
                limit=self._burst,
            )
        self._ticking.fast()
        if process is not None:
            self._end(process, "killed", f"{what}; it caught BurstExceeded {MAX_CATCHES} times and went on")
        return asyncio.CancelledError()

    def _log_failure(self, failure: Exception) -> None:
        log.error("the watchdog failed at a tick", exception=traceback_text(failure, whole=True))

    def _log_callback(self, process: Process | None, held: float, place: str) -> None:
        owner = {} if process is None else {"pid": process.pid, "program": process.program}
        log.warning("a callback held the loop and was interrupted", place=place, seconds=round(held, 3), **owner)

    def log_slow_step(self, thread: Thread, seconds: float) -> None:
        """Count and log a step that held the loop. Few such steps fit into a second, so the log stays short."""
        self.slow_steps += 1
        log.warning(
            "a thread held the loop",
            pid=thread.process.pid,
            program=thread.process.program,
            thread=thread.get_name(),
            seconds=round(seconds, 3),
        )
