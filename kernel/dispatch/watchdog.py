"""The watchdog: logs agents that hold the loop, and interrupts those that hold it for too long.

A burst is the longest time for which an agent may hold the loop. An interval timer of the operating system interrupts
the main thread a few times per burst. Python then calls `tick` between two bytecodes, and an error that `tick` raises
is raised in the interrupted code. It never raises in kernel code or during an import, which would leave a module half
loaded; in these cases the next tick tries again. It cannot interrupt a single long call of C code, and does not watch
functions that asyncio calls by itself (`loop.call_soon`).
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

TICKS = 4  # per burst, so that a step is interrupted at most a quarter of a burst too late
MAX_CATCHES = 3  # how often an agent may catch the error in one step; the next time it is ended
FAST_TICK = 0.0001  # seconds between the ticks while such an agent is ended
PROTECTED_PACKAGES = frozenset({"kernel", "ipc", "llmosd", "importlib"})

log = structlog.get_logger("kernel.watchdog")


class Watchdog:
    """Watches the steps of one dispatcher.

    It logs each step that overruns its turn by `slow_step` seconds, and interrupts each step that holds the loop for
    `burst` seconds (0: never). It calls `end` to kill a process that has caught the error too often.

    `slow_steps` counts the logged steps. `errors` counts the interrupted steps by the name of the error.
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
        self._thread: Thread | None = None  # the thread whose step ran at the last tick
        self._cpu = 0.0  # its processor time before that step, which distinguishes one step from the next
        self._since = 0.0  # when the first tick saw that step
        self._ticks = 0  # how many further ticks have seen that step
        self._raised = 0  # how often that step was interrupted
        self._previous_handler: signal.Handlers | Callable[[int, FrameType | None], object] | int | None = None
        self._running = False
        self.slow_steps = 0
        dispatcher.slow_step = slow_step

    def start(self) -> None:
        """Tick a few times per burst from now on. Call this in the main thread: signals interrupt no other thread."""
        if self._burst and not self._running:
            self._running = True
            self._previous_handler = signal.signal(signal.SIGALRM, self.tick)
            self._tick_every(self._burst / TICKS)

    def set_burst(self, burst: float) -> None:
        """Interrupt steps after `burst` seconds from now on; 0: never. Called after `start`."""
        self.stop()
        self._burst = burst
        self.start()

    def stop(self) -> None:
        """Stop ticking, and restore the previous signal handler."""
        if self._running:
            self._running = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._previous_handler)

    def tick(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: raise `BurstExceeded` in the agent that runs in `frame` if its step takes too long.

        An agent that has caught the error `MAX_CATCHES` times in one step is ended: `tick` raises `CancelledError`,
        which `except Exception` does not catch. From then on the ticks are so frequent that an agent that uses
        `except BaseException` gets the next error before it has left that block.
        """
        thread: object = asyncio.current_task(self._loop)
        if thread is not self._thread or (isinstance(thread, Thread) and thread.cpu != self._cpu):
            if self._raised > MAX_CATCHES:
                self._tick_every(self._burst / TICKS)
            self._ticks = self._raised = 0
            self._thread = thread if isinstance(thread, Thread) else None
            self._cpu, self._since = self._thread.cpu if self._thread else 0.0, self._clock()
            return
        if self._thread is None:
            return
        thread = self._thread
        held = self._clock() - self._since
        # At least two ticks must see the step: a single tick may be late because the daemon itself was stopped.
        self._ticks += 1
        if held < self._burst or self._ticks < 2 or not _is_in_agent_code(frame, thread):
            return
        process = thread.process
        self._raised += 1
        if self._raised == 1:
            self._errors[BurstExceeded.__name__] += 1
        what = f"{process.program} held the loop for {held:.1f} s without awaiting; the limit is {self._burst:g} s"
        if self._raised <= MAX_CATCHES:
            raise BurstExceeded(
                f"{what}; move long computations into a tool, or give up the loop with `await asyncio.sleep(0)`",
                pid=process.pid,
                limit=self._burst,
            )
        self._tick_every(FAST_TICK)
        self._end(process, "killed", f"{what}; it caught BurstExceeded {MAX_CATCHES} times and went on")
        raise asyncio.CancelledError

    def _tick_every(self, seconds: float) -> None:
        if self._running:
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)

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


def _is_in_agent_code(frame: FrameType | None, thread: Thread) -> bool:
    """Whether `frame` belongs to the coroutine of `thread`, with no frame of the kernel in between."""
    outermost = getattr(thread.get_coro(), "cr_frame", None)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in PROTECTED_PACKAGES:
            return False
        if frame is outermost:
            return True
        frame = frame.f_back
    return False
