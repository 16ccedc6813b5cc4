"""The guard of signals: agents share the main thread of the daemon, and may not change how the daemon handles signals.

`install` replaces functions of the module `signal`. For the kernel they work as before. An agent may block signals
until the end of its step, and set an alarm (`SIGALRM`, `SIGVTALRM`, `SIGPROF`), which rings only in its own code and
ends with its step. The watchdog calls `check`, which finds and undoes changes that were made in another way. The guard
never replaces a handler by its own while nobody has changed it.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import structlog

from kernel.core.process import Process
from kernel.event_loop.owner import acting_process, described

TIMERS: dict[int, int] = {
    signal.SIGALRM: signal.ITIMER_REAL,
    signal.SIGVTALRM: signal.ITIMER_VIRTUAL,
    signal.SIGPROF: signal.ITIMER_PROF,
}
FOR_A_MOMENT = frozenset({signal.SIGINT, signal.SIGTERM})  # `multiprocessing` blocks them while it starts a process
AGAIN = 0.005  # seconds until an alarm that rang in code of the kernel rings again
OURS = frozenset({"kernel", "ipc", "llmosd"})

log = structlog.get_logger("kernel.event_loop")

set_handler = signal.signal  # the functions of the library, which the guard replaces
set_timer = signal.setitimer
_alarm = signal.alarm
set_wakeup_fd = signal.set_wakeup_fd
set_mask = signal.pthread_sigmask


def ignore(number: int, frame: FrameType | None) -> None:
    """The handler of alarms that nobody has set. The default would end the daemon."""


class SignalGuard:
    """The handlers that must stay, and the alarms of agents."""

    def __init__(self) -> None:
        self._protected: dict[int, Any] = {}  # the handlers by number
        self._alarms: dict[int, Process] = {}  # the process that uses an alarm in the present turn of the loop
        self._mask: set[Any] | None = None  # the mask before an agent changed it in the present turn of the loop
        self._installed = False

    def install(self) -> None:
        """Guard the functions of `signal` from now on."""
        if self._installed:
            return
        self._installed = True
        signal.signal = self._signal
        signal.setitimer = self._setitimer
        signal.alarm = self._set_alarm
        signal.set_wakeup_fd = self._guarded(set_wakeup_fd, "signal.set_wakeup_fd()")
        signal.pthread_sigmask = cast("Any", self._sigmask)

    def uninstall(self) -> None:
        """Undo `install`, in a forked child, which may handle its signals as it likes."""
        signal.signal, signal.setitimer, signal.alarm = set_handler, set_timer, _alarm
        signal.set_wakeup_fd, signal.pthread_sigmask = set_wakeup_fd, set_mask
        self._protected.clear()
        self._alarms.clear()
        self._mask = None
        self._installed = False

    def take_alarms(self) -> None:
        """Ignore the alarms that nobody has set, from now on. Call this in the main thread."""
        for number in TIMERS:
            set_handler(number, ignore)
            self.protect(number)

    def give_alarms_back(self) -> None:
        """Undo `take_alarms`."""
        for number, timer in TIMERS.items():
            self.release(number)
            set_timer(timer, 0)
            set_handler(number, signal.SIG_DFL)

    def protect(self, number: int) -> None:
        """The present handler of this signal must stay."""
        self._protected[number] = signal.getsignal(number)

    def release(self, number: int) -> None:
        """The handler of this signal may change."""
        self._protected.pop(number, None)

    def check(self, process: Process | None, loop: asyncio.AbstractEventLoop) -> None:
        """Restore the handlers that have changed. `process` is the one that runs now. Call this in the main thread.

        The loop logs what it finds: a signal handler, which calls this, must not wait for the lock of the log.
        """
        for number, handler in tuple(self._protected.items()):  # an alarm may call this again meanwhile
            if number not in self._alarms and signal.getsignal(number) is not handler:
                set_handler(number, handler)
                if number in TIMERS:
                    set_timer(TIMERS[number], 0)
                text = "a signal handler of the daemon was replaced; it is restored"
                loop.call_soon_threadsafe(self._report, text, number, process)
        for blocked in set_mask(signal.SIG_BLOCK, ()):
            if blocked in self._protected and (self._mask is None or blocked not in FOR_A_MOMENT):
                set_mask(signal.SIG_UNBLOCK, {blocked})
                text = "a signal of the daemon was blocked; it is unblocked"
                loop.call_soon_threadsafe(self._report, text, blocked, process)

    # ---- the replaced functions

    def _signal(self, signalnum: Any, handler: Any) -> Any:
        process = _in_main_thread()
        if process is None or signalnum not in TIMERS:
            if process is not None:
                _refuse(process, "signal.signal()", f"of {_name(signalnum)}: it belongs to the daemon")
            return set_handler(signalnum, handler)
        self._use(signalnum, process)
        if handler in {signal.SIG_DFL, signal.SIG_IGN}:
            handler = ignore
        if callable(handler) and handler is not ignore and not isinstance(handler, _Alarm):
            handler = _Alarm(handler, process)
        before = set_handler(signalnum, handler)
        return signal.SIG_DFL if before is ignore else before

    def _setitimer(self, which: int, seconds: float, interval: float = 0.0, /) -> Any:
        process = _in_main_thread()
        if process is not None:
            for number, timer in TIMERS.items():
                if timer == which:
                    self._use(number, process)
        return set_timer(which, seconds, interval)

    def _set_alarm(self, seconds: int, /) -> int:
        process = _in_main_thread()
        if process is not None:
            self._use(signal.SIGALRM, process)
        return _alarm(seconds)

    def _sigmask(self, how: Any, mask: Any, /) -> Any:
        process = _in_main_thread()
        if process is not None and self._mask is None:  # `multiprocessing` blocks signals for a moment
            self._mask = set_mask(signal.SIG_BLOCK, ())
            asyncio.get_running_loop().call_soon(self._restore_mask, process)
        return set_mask(how, mask)

    def _guarded(self, function: Callable[..., Any], name: str) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            process = _in_main_thread()
            if process is not None:
                _refuse(process, name, ": the daemon needs its signals")
            return function(*args, **options)

        return call

    # ---- alarms

    def _use(self, number: int, process: Process) -> None:
        """`process` uses this alarm until the end of its step."""
        if number not in self._alarms:
            asyncio.get_running_loop().call_soon(self._step_over, number)
        self._alarms[number] = process

    def _step_over(self, number: int) -> None:
        process = self._alarms.pop(number, None)
        left, _ = set_timer(TIMERS[number], 0)
        set_handler(number, self._protected.get(number, ignore))
        if left and process is not None:
            self._report("an agent awaited with an alarm set; the alarm is cleared", number, process)

    def _restore_mask(self, process: Process) -> None:
        if self._mask is not None:
            before, self._mask = self._mask, None
            for number in set_mask(signal.SIG_SETMASK, before) - before:
                self._report("an agent awaited with a signal blocked; it is unblocked", number, process)

    def _report(self, what: str, number: int, process: Process | None) -> None:
        fields: dict[str, Any] = {} if process is None else {"pid": process.pid, "program": process.program}
        log.warning(what, signal=_name(number), **fields)


class _Alarm:
    """The handler of an agent. It is called only in code of that agent."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any], process: Process) -> None:
        self._handler = handler
        self._process = process

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if acting_process() is not self._process:
            return
        if frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in OURS:
            set_timer(TIMERS[number], AGAIN)
            return
        self._handler(number, frame)


def _in_main_thread() -> Process | None:
    """The process whose code runs in the main thread. Elsewhere the library itself refuses most calls."""
    return acting_process() if threading.current_thread() is threading.main_thread() else None


def _refuse(process: Process, what: str, why: str) -> None:
    # The same class as in a thread other than the main thread, which libraries expect.
    raise ValueError(f"{described(process)} cannot call {what} {why}".replace("() :", "():"))


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


SIGNALS = SignalGuard()  # one: the module `signal` exists once
