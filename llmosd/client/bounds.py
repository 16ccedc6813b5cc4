"""The bounds of a client's waits: how long it waits for the daemon, and the error after that.

Both clients take the bound of every call from here. A call with a timeout of its own may also end a little later, by
the daemon's answer, which knows more. This module never waits itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf

from ipc.errors import LlmosError, NoDaemon, TimedOut
from ipc.syscalls import (
    AcquireLock,
    AcquirePermit,
    Backup,
    Call,
    Crashes,
    DeadLetters,
    EmbedTexts,
    FinishedCalls,
    Generate,
    GetStats,
    Locks,
    Logs,
    Models,
    Names,
    PeekMailbox,
    Ping,
    Programs,
    Ps,
    Receive,
    Regions,
    ScoreText,
    Send,
    SharedWatch,
    Shutdown,
    Sleep,
    Slots,
    Supervise,
    Syscall,
    Threads,
    Tools,
    UseTool,
    Wait,
    WaitAtBarrier,
    WaitForEvent,
    WaitForNotice,
    Why,
)

CONNECT_TIMEOUT = 10.0  # seconds for the daemon to accept the connection and answer
ANSWER_TIMEOUT = 30.0  # seconds for a call that the daemon answers from its tables
WORK_TIMEOUT = 300.0  # seconds for any other call that waits for nobody: for the disk, for a program to load, ...
LONGEST = 1e8  # seconds; a longer time is no bound, and would overflow a timer
GRACE = 2.0  # seconds in which the daemon can answer a call after the timeout in the call

ANSWERED_AT_ONCE: tuple[type[Syscall], ...] = (
    Crashes,
    DeadLetters,
    FinishedCalls,
    GetStats,
    Locks,
    Logs,
    Models,
    Names,
    PeekMailbox,
    Ping,
    Programs,
    Ps,
    Regions,
    Shutdown,
    Slots,
    Threads,
    Tools,
    Why,
)
# Calls that wait for somebody, or for work of any length: bounded by their own `timeout` only.
WAITING: tuple[type[Syscall], ...] = (
    AcquireLock,
    AcquirePermit,
    Backup,
    Call,
    EmbedTexts,
    Generate,
    Receive,
    ScoreText,
    Send,
    SharedWatch,
    Sleep,
    Supervise,
    UseTool,
    Wait,
    WaitAtBarrier,
    WaitForEvent,
    WaitForNotice,
)
SECONDS: dict[type[Syscall], float] = dict.fromkeys(ANSWERED_AT_ONCE, ANSWER_TIMEOUT) | dict.fromkeys(WAITING, inf)


class Bound:
    """The end of a wait: `seconds` from now, and the error then. `until` is on the monotonic clock."""

    __slots__ = ("_make_error", "_polled", "seconds", "until")

    def __init__(self, seconds: float, make_error: Callable[[], LlmosError]) -> None:
        self.seconds = seconds
        self.until = time.monotonic() + seconds if seconds <= LONGEST else inf  # NaN is no bound either
        self._make_error = make_error
        self._polled = False

    def left(self) -> float | None:
        """Seconds to wait, or None for any time. After the end it is 0 once, for a last look, and then raises."""
        if self.until == inf:
            return None
        left = self.until - time.monotonic()
        if left <= 0:
            if self._polled:
                raise self.error()
            self._polled = True
        return max(left, 0.0)

    def error(self) -> LlmosError:
        """The error of this bound."""
        return self._make_error()


NEVER = Bound(inf, TimedOut)  # does not end


def within(timeout: float | None, what: str) -> Bound:
    """The bound that a caller set. `what` did not happen: "process 7 gave no result"."""
    if timeout is None:
        return NEVER
    return Bound(timeout, lambda: TimedOut(f"{what} within {timeout:g} s"))


def answering(call: Syscall, socket: object, timeout: float | None = None) -> Bound:
    """The bound of `call`: `timeout` if the caller set one, else what such a call needs at most."""
    kind = type(call)
    if timeout is not None:
        return within(timeout, f"no answer to {kind.__name__}")
    own = getattr(call, "timeout", None)
    if isinstance(own, (int, float)):  # of another type: the daemon refuses the call
        return Bound(own + GRACE, lambda: TimedOut(f"no answer to {kind.__name__} within {own:g} s"))
    seconds = SECONDS.get(kind, WORK_TIMEOUT)
    if seconds == inf:
        return NEVER
    return Bound(seconds, lambda: no_daemon(socket, f" to {kind.__name__} within {seconds:g} s"))


def no_daemon(socket: object, why: str = "") -> NoDaemon:
    """The error for a daemon that is there, and does not answer."""
    return NoDaemon(f"the daemon at {socket} does not answer{why}", socket=str(socket))
