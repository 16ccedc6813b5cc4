"""Synchronisation: the calls of an agent for locks and other primitives, by name, shared by all processes.

All are fair: threads are served in the order of arrival. Only the thread that acquired a lock can release it; when that
thread ends, the next waiting thread gets the lock. Timeouts are in seconds and raise `TimedOut`. A wait that would
never end, because of a deadlock, raises `DeadlockDetected`.
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
        """The lock `name`. With `reentrant`, its holder may acquire it several times, and must release it as often."""
        return Lock(self._gate, self._process, name, reentrant)

    def semaphore(self, name: str, permits: int) -> Semaphore:
        """The semaphore `name` with `permits` permits. All its users must state the same number."""
        return Semaphore(self._gate, self._process, name, permits)

    def condition(self, name: str) -> Condition:
        """The condition `name`. Its lock is the lock of the same name."""
        return Condition(self._gate, self._process, name, False)

    def barrier(self, name: str, parties: int) -> Barrier:
        """The barrier `name` for `parties` threads. All its users must state the same number."""
        return Barrier(self._gate, self._process, name, parties)

    def event(self, name: str) -> Event:
        """The event `name`. It stays set until a thread clears it, also after the thread that set it has ended."""
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


class _Acquirable(_Named):
    """A primitive that a thread acquires and releases, also by `async with`."""

    __slots__ = ()

    @abstractmethod
    def acquire(self, timeout: float | None = None) -> Coroutine[Any, Any, None]: ...

    @abstractmethod
    def release(self) -> Coroutine[Any, Any, None]: ...

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        # A killed process may make no more calls. The kernel frees its locks and permits when its threads end.
        with suppress(Killed):
            await self.release()


class Lock(_Acquirable):
    """Held by one thread at a time."""

    __slots__ = ("_reentrant",)

    def __init__(self, gate: SystemCalls, process: Process, name: str, reentrant: bool) -> None:
        super().__init__(gate, process, name)
        self._reentrant = reentrant

    def acquire(self, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Acquire the lock, or wait for it. Raises `TimedOut` after `timeout` seconds, `DeadlockDetected`."""
        return self._call(AcquireLock(self.name, timeout, self._reentrant))

    def release(self) -> Coroutine[Any, Any, None]:
        """Undo one `acquire`. Raises `NotHeld`."""
        return self._call(ReleaseLock(self.name))


class Condition(Lock):
    """A lock whose holder can wait for a notice from another holder."""

    __slots__ = ()

    def wait(self, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Release the lock, wait for a notice, and acquire the lock again, also after an error.

        Raises `NotHeld`, and `TimedOut` after `timeout` seconds.
        """
        return self._call(WaitForNotice(self.name, timeout))

    def notify(self, n: int = 1) -> Coroutine[Any, Any, int]:
        """Wake the first `n` waiting threads. Returns how many it woke. Raises `NotHeld`."""
        return self._call(Notify(self.name, n))

    def notify_all(self) -> Coroutine[Any, Any, int]:
        """Wake all waiting threads. Returns how many it woke. Raises `NotHeld`."""
        return self._call(Notify(self.name, None))


class Semaphore(_Acquirable):
    """A number of permits; a thread may hold several."""

    __slots__ = ("_permits",)

    def __init__(self, gate: SystemCalls, process: Process, name: str, permits: int) -> None:
        super().__init__(gate, process, name)
        self._permits = permits

    def acquire(self, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Acquire one more permit, or wait for it. Raises `TimedOut` after `timeout` seconds, `DeadlockDetected`."""
        return self._call(AcquirePermit(self.name, self._permits, timeout))

    def release(self) -> Coroutine[Any, Any, None]:
        """Release one permit. Raises `NotHeld`."""
        return self._call(ReleasePermit(self.name))


class Barrier(_Named):
    """Opens when all parties wait at it, then closes again for the next round."""

    __slots__ = ("_parties",)

    def __init__(self, gate: SystemCalls, process: Process, name: str, parties: int) -> None:
        super().__init__(gate, process, name)
        self._parties = parties

    def wait(self, timeout: float | None = None) -> Coroutine[Any, Any, bool]:
        """Wait until all parties have arrived. Returns True only in the last of them.

        A thread that times out no longer counts as arrived.
        """
        return self._call(WaitAtBarrier(self.name, self._parties, timeout))


class Event(_Named):
    """A flag that threads can wait for."""

    __slots__ = ()

    def set(self) -> Coroutine[Any, Any, None]:
        """Wake all waiting threads. Later waits return immediately until the event is cleared."""
        return self._call(SetEvent(self.name))

    def clear(self) -> Coroutine[Any, Any, None]:
        """Undo `set`: later waits wait again."""
        return self._call(ClearEvent(self.name))

    def wait(self, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Wait until the event is set. Raises `TimedOut` after `timeout` seconds."""
        return self._call(WaitForEvent(self.name, timeout))
