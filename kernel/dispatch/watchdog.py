"""The watchdog: names agents that hold the loop, and breaks their code when they hold it for too long.

An interval timer of the operating system interrupts the main thread a few times per burst; between two bytecodes of
whatever runs there Python calls `look`, which may raise. It raises in code of an agent only: never if the kernel is at
work, for the agent or for itself, and never while a module is being imported, which would be left half made. Then it
looks again at the next tick. It cannot break one long call of C code; such agents belong in a process of their own.
A function that asyncio calls by itself (`loop.call_soon`) is no step of a thread, and is not watched.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from types import FrameType

import structlog

from ipc.errors import BurstExceeded
from kernel.core.process import Process, Thread
from kernel.dispatch.dispatcher import Dispatcher

TICKS = 4  # per burst, so that it is noticed at most a quarter late
CAUGHT = 3  # times in one step that an agent may catch the error, then it is ended
URGENT = 0.0001  # seconds between the ticks for such a one
OURS = frozenset({"kernel", "ipc", "llmosd", "importlib"})

log = structlog.get_logger("kernel.watchdog")


class Watchdog:
    """Watches the steps of one dispatcher.

    It logs each that holds the loop for `slow_step` seconds, and breaks each that holds it for `burst` seconds (0:
    never). `end` ends a process that catches what is raised in it, again and again.

    `slow_steps` counts the steps that were logged, `errors` those that were broken, by the name of the error.
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
        self._thread: Thread | None = None  # that was in a step at the last tick,
        self._cpu = 0.0  # its processor time before that step, which tells one step from the next,
        self._since = 0.0  # when the step was first seen,
        self._seen = 0  # how often since then,
        self._raised = 0  # and how often it was broken
        self._before: signal.Handlers | Callable[[int, FrameType | None], object] | int | None = None
        self._running = False
        self.slow_steps = 0
        dispatcher.slow_step = slow_step

    def start(self) -> None:
        """Look a few times per burst from now on. In the main thread only: no other can be interrupted."""
        if self._burst and not self._running:
            self._running = True
            self._before = signal.signal(signal.SIGALRM, self.look)
            self._tick_every(self._burst / TICKS)

    def stop(self) -> None:
        """Look no more."""
        if self._running:
            self._running = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)

    def look(self, number: int, frame: FrameType | None) -> None:
        """Raise `BurstExceeded` in the agent that was interrupted in `frame`, if its step has lasted too long.

        The signal handler. Whoever catches it `CAUGHT` times without awaiting is ended: it gets `CancelledError`, which
        `except Exception` lets pass, and so often that the next is raised while an `except BaseException` is left.
        """
        thread: object = asyncio.current_task(self._loop)
        if thread is not self._thread or (isinstance(thread, Thread) and thread.cpu != self._cpu):
            if self._raised > CAUGHT:
                self._tick_every(self._burst / TICKS)
            self._seen = self._raised = 0
            self._thread = thread if isinstance(thread, Thread) else None
            self._cpu, self._since = self._thread.cpu if self._thread else 0.0, self._clock()
            return
        if self._thread is None:
            return
        thread = self._thread
        held = self._clock() - self._since
        # Seen twice since then, so that a daemon that was stopped for a while takes no one for a hog.
        self._seen += 1
        if held < self._burst or self._seen < 2 or not _in_agent_code(frame, thread):
            return
        process = thread.process
        self._raised += 1
        if self._raised == 1:
            self._errors[BurstExceeded.__name__] += 1
        what = f"{process.program} held the loop for {held:.1f} s without awaiting, and may for {self._burst:g} s"
        if self._raised <= CAUGHT:
            raise BurstExceeded(
                f"{what}; put long computations into a tool, or give way with `await asyncio.sleep(0)`",
                pid=process.pid,
                limit=self._burst,
            )
        self._tick_every(URGENT)
        self._end(process, "killed", f"{what}; it caught BurstExceeded {CAUGHT} times and went on")
        raise asyncio.CancelledError

    def _tick_every(self, seconds: float) -> None:
        if self._running:
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)

    def slow(self, thread: Thread, seconds: float) -> None:
        # At most so many lines a second as slow steps fit into it.
        self.slow_steps += 1
        log.warning(
            "a thread held the loop",
            pid=thread.process.pid,
            program=thread.process.program,
            thread=thread.get_name(),
            seconds=round(seconds, 3),
        )


def _in_agent_code(frame: FrameType | None, thread: Thread) -> bool:
    """Whether `frame` runs for the coroutine of `thread`, with nothing of ours in between."""
    outermost = getattr(thread.get_coro(), "cr_frame", None)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in OURS:
            return False
        if frame is outermost:
            return True
        frame = frame.f_back
    return False
