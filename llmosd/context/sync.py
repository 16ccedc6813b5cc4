"""Synchronisation, as agents use it: named locks and their kin, shared by all processes of the daemon.

Fair: first come, first served. The thread that acquires is the one that releases; what it holds when it ends, however
it ends, goes to who waits next. Timeouts are seconds and raise `TimedOut`; a deadlock raises `DeadlockDetected` in the
thread whose wait closes it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from ipc.errors import Killed
from ipc.syscalls import (
    AcquireLock,
    AcquirePermit,
    ClearEvent,
    Notify,
    ReleaseLock,
    ReleasePermit,
    SetEvent,
    Syscall,
    WaitAtBarrier,
    WaitForEvent,
    WaitForNotice,
)
from llmosd.context.base import Caller

if TYPE_CHECKING:
    from kernel.core.process import Process
    from kernel.gate import SystemCalls


class SyncMethods(Caller):
    """Lock, semaphore, condition, barrier and event by name."""

    __slots__ = ()

    def lock(self, name: str, *, reentrant: bool = False) -> Lock:
        """The lock `name`; if `reentrant`, its holder may acquire it again, and releases it as often."""
        return Lock(self._gate, self._process, name, reentrant)

    def semaphore(self, name: str, permits: int) -> Semaphore:
        """The semaphore `name`, with `permits` in all: the same number wherever it is used."""
        return Semaphore(self._gate, self._process, name, permits)

    def condition(self, name: str) -> Condition:
        """The condition `name`, together with its lock, which is the lock of that name."""
        return Condition(self._gate, self._process, name, False)

    def barrier(self, name: str, parties: int) -> Barrier:
        """The barrier `name` for `parties` threads: the same number wherever it is used."""
        return Barrier(self._gate, self._process, name, parties)

    def event(self, name: str) -> Event:
        """The event `name`. It stays set until somebody clears it, also when who set it has ended."""
        return Event(self._gate, self._process, name)


class _Named:
    """A name, and the process that uses it."""

    __slots__ = ("_gate", "_process", "name")

    def __init__(self, gate: SystemCalls, process: Process, name: str) -> None:
        self._gate = gate
        self._process = process
        self.name = name

    def _call(self, call: Syscall) -> Coroutine[Any, Any, Any]:
        return self._gate.call(self._process, call)


class _Held(_Named):
    """What is held within `async with`."""

    __slots__ = ()

    @abstractmethod
    def acquire(self, timeout: float | None = None) -> Coroutine[Any, Any, None]: ...

    @abstractmethod
    def release(self) -> Coroutine[Any, Any, None]: ...

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        # A process that was killed makes no more calls; what its threads hold is taken from them when they end.
        with suppress(Killed):
            await self.release()


class Lock(_Held):
    """Held by one thread at a time."""

    __slots__ = ("_reentrant",)

    def __init__(self, gate: SystemCalls, process: Process, name: str, reentrant: bool) -> None:
        super().__init__(gate, process, name)
        self._reentrant = reentrant

    def acquire(self, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Hold it, waiting at most `timeout` seconds. Raises `TimedOut`, `DeadlockDetected`."""
        return self._call(AcquireLock(self.name, timeout, self._reentrant))

    def release(self) -> Coroutine[Any, Any, None]:
        """Undo one `acquire`. Raises `NotHeld`."""
        return self._call(ReleaseLock(self.name))


class Condition(Lock):
    """A lock whose holder can wait for a notice from another holder."""

    __slots__ = ()

    def wait(self, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Give up the lock until notified. It is held again on every way out. Raises `NotHeld`, `TimedOut`."""
        return self._call(WaitForNotice(self.name, timeout))

    def notify(self, n: int = 1) -> Coroutine[Any, Any, int]:
        """Let the first `n` that wait go on; how many these were. Raises `NotHeld`."""
        return self._call(Notify(self.name, n))

    def notify_all(self) -> Coroutine[Any, Any, int]:
        """Let all that wait go on; how many these were. Raises `NotHeld`."""
        return self._call(Notify(self.name, None))


class Semaphore(_Held):
    """A number of permits; a thread may hold several."""

    __slots__ = ("_permits",)

    def __init__(self, gate: SystemCalls, process: Process, name: str, permits: int) -> None:
        super().__init__(gate, process, name)
        self._permits = permits

    def acquire(self, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Hold one permit more, waiting at most `timeout` seconds. Raises `TimedOut`, `DeadlockDetected`."""
        return self._call(AcquirePermit(self.name, self._permits, timeout))

    def release(self) -> Coroutine[Any, Any, None]:
        """Give one permit back. Raises `NotHeld`."""
        return self._call(ReleasePermit(self.name))


class Barrier(_Named):
    """Opens when all parties wait at it, then closes for the next ones."""

    __slots__ = ("_parties",)

    def __init__(self, gate: SystemCalls, process: Process, name: str, parties: int) -> None:
        super().__init__(gate, process, name)
        self._parties = parties

    def wait(self, timeout: float | None = None) -> Coroutine[Any, Any, bool]:
        """Until all are there. True for the last to come, and only for it. Who gives up no longer counts."""
        return self._call(WaitAtBarrier(self.name, self._parties, timeout))


class Event(_Named):
    """A flag to wait for."""

    __slots__ = ()

    def set(self) -> Coroutine[Any, Any, None]:
        """Let all go on that wait, and let nobody wait until it is cleared."""
        return self._call(SetEvent(self.name))

    def clear(self) -> Coroutine[Any, Any, None]:
        """Undo `set`."""
        return self._call(ClearEvent(self.name))

    def wait(self, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Until it is set. Raises `TimedOut`."""
        return self._call(WaitForEvent(self.name, timeout))
