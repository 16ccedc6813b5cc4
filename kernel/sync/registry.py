"""The synchronisation subsystem: locks, semaphores, conditions, barriers and events by name, shared by all processes.

The gate calls its handlers. A primitive is created at its first use and forgotten when it is idle. A handler that
acquires a lock or a permit returns a coroutine even if it need not wait. The thread thus gets the resource only when
the gate awaits the coroutine, and cannot be cancelled between the grant and the answer. No primitive ever survives the
daemon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from ipc.errors import Busy, InvalidCall, NotPermitted, SyncMismatch
from ipc.syscalls import (
    AcquireLock,
    AcquirePermit,
    ClearEvent,
    LockInfo,
    Locks,
    Notify,
    ReleaseLock,
    ReleasePermit,
    SetEvent,
    Syscall,
    WaitAtBarrier,
    WaitForEvent,
    WaitForNotice,
)
from kernel.core.process import Process, Thread
from kernel.gate import Gate
from kernel.lib.pages import names_after
from kernel.lib.validation import check_text, check_timeout
from kernel.lib.wording import counted
from kernel.sync.barrier import Barrier
from kernel.sync.event import Event
from kernel.sync.lock import Condition, Lock
from kernel.sync.semaphore import Semaphore

MAX_NAMES = 100_000
MAX_NAME = 200  # characters
MAX_PIDS = 100  # holders, and as many waiters, in a row of the listing

Primitive = Lock | Semaphore | Barrier | Event
Kind = TypeVar("Kind", Lock, Semaphore, Barrier, Event)


class Synchronisation:
    """Finds the primitive that a call names, and applies the call to it."""

    def __init__(self, gate: Gate) -> None:
        self._named: dict[str, Primitive] = {}
        gate.register(
            {
                Locks: self.locks,
                AcquireLock: self.acquire_lock,
                ReleaseLock: self.release_lock,
                AcquirePermit: self.acquire_permit,
                ReleasePermit: self.release_permit,
                WaitForNotice: self.wait_for_notice,
                Notify: self.notify,
                WaitAtBarrier: self.wait_at_barrier,
                SetEvent: self.set_event,
                ClearEvent: self.clear_event,
                WaitForEvent: self.wait_for_event,
            }
        )

    def thread_ended(self, thread: Thread) -> None:
        """Hand every lock and permit that `thread` held to the next waiting threads."""
        for held in tuple(thread.holds or ()):
            held.drop(thread)
            self._forget_if_idle(cast("Lock | Semaphore", held))

    # ---- system calls

    def locks(self, process: Process, call: Locks) -> list[LockInfo]:
        rows: list[LockInfo] = []
        for name in names_after(self._named, call.after, Locks):
            rows += map(_shortened, self._named[name].info())
        return rows

    def acquire_lock(self, process: Process, call: AcquireLock) -> Coroutine[Any, Any, None]:
        thread, timeout = self._caller(process, call), check_timeout(call.timeout)
        lock = self._lock(call.name)
        return self._await_and_tidy(lock, lock.acquire(thread, timeout, reentrant=call.reentrant))

    def release_lock(self, process: Process, call: ReleaseLock) -> None:
        thread, lock = self._caller(process, call), self._lock(call.name)
        self._call_and_tidy(lock, lock.release, thread)

    def acquire_permit(self, process: Process, call: AcquirePermit) -> Coroutine[Any, Any, None]:
        thread, timeout = self._caller(process, call), check_timeout(call.timeout)
        _check_count("permits", call.permits)
        semaphore = self._find(Semaphore, call.name, lambda: Semaphore(call.name, call.permits))
        _check_same(semaphore, "permits", semaphore.permits, call.permits)
        return self._await_and_tidy(semaphore, semaphore.acquire(thread, timeout))

    def release_permit(self, process: Process, call: ReleasePermit) -> None:
        thread = self._caller(process, call)
        semaphore = self._find(Semaphore, call.name, lambda: Semaphore(call.name, 0))
        self._call_and_tidy(semaphore, semaphore.release, thread)

    def wait_for_notice(self, process: Process, call: WaitForNotice) -> Coroutine[Any, Any, None]:
        thread, timeout = self._caller(process, call), check_timeout(call.timeout)
        lock = self._lock(call.name)
        return self._await_and_tidy(lock, _condition(lock).wait(thread, timeout))

    def notify(self, process: Process, call: Notify) -> int:
        thread, lock = self._caller(process, call), self._lock(call.name)
        if call.count is not None:
            _check_count("count", call.count)
        return cast("int", self._call_and_tidy(lock, _condition(lock).notify, thread, call.count))

    def wait_at_barrier(self, process: Process, call: WaitAtBarrier) -> Coroutine[Any, Any, bool]:
        thread, timeout = self._caller(process, call), check_timeout(call.timeout)
        _check_count("parties", call.parties)
        barrier = self._find(Barrier, call.name, lambda: Barrier(call.name, call.parties))
        _check_same(barrier, "parties", barrier.parties, call.parties)
        return self._await_and_tidy(barrier, barrier.wait(thread, timeout))

    def set_event(self, process: Process, call: SetEvent) -> None:
        self._caller(process, call)
        event = self._find(Event, call.name, lambda: Event(call.name))
        self._call_and_tidy(event, event.set)

    def clear_event(self, process: Process, call: ClearEvent) -> None:
        self._caller(process, call)
        event = self._find(Event, call.name, lambda: Event(call.name))
        self._call_and_tidy(event, event.clear)

    def wait_for_event(self, process: Process, call: WaitForEvent) -> Coroutine[Any, Any, None] | None:
        thread, timeout = self._caller(process, call), check_timeout(call.timeout)
        event = self._find(Event, call.name, lambda: Event(call.name))
        return None if event.is_set else self._await_and_tidy(event, event.wait(thread, timeout))

    # ---- inside

    def _caller(self, process: Process, call: Syscall) -> Thread:
        """The thread that makes the call. Raises `NotPermitted` if it belongs to a client."""
        thread = asyncio.current_task()
        if process.is_client or not isinstance(thread, Thread) or thread.process is not process:
            raise NotPermitted(
                f"{type(call).__name__} is for the threads of an agent: a client's thread ends with its request"
            )
        return thread

    def _lock(self, name: str) -> Lock:
        return self._find(Lock, name, lambda: Lock(name))

    def _find(self, kind: type[Kind], name: str, make: Callable[[], Kind]) -> Kind:
        named = self._named.get(name) if isinstance(name, str) else None
        if named is None:
            check_text(name, "a name", MAX_NAME, least=1)
            if len(self._named) >= MAX_NAMES:
                what = "locks, semaphores, barriers and events"
                raise Busy(f"{MAX_NAMES} {what} are in use, which is the limit; try again later", retry_after=1.0)
            named = self._named[name] = make()
        if not isinstance(named, kind):
            raise SyncMismatch(f"{name!r} is a {named.kind}, not a {kind.kind}; use another name")
        return named

    async def _await_and_tidy(self, named: Primitive, operation: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await operation
        finally:
            self._forget_if_idle(named)

    def _call_and_tidy(self, named: Primitive, operation: Callable[..., Any], *args: Any) -> Any:
        try:
            return operation(*args)
        finally:
            self._forget_if_idle(named)

    def _forget_if_idle(self, named: Primitive) -> None:
        # Compare by identity: when a thread leaves an old primitive, a new one may have its name.
        if named.idle and self._named.get(named.name) is named:
            del self._named[named.name]


def _shortened(row: LockInfo) -> LockInfo:
    """`row` with the first pids only, if it has many."""
    holders, waiters = len(row.holders), len(row.waiters)
    if holders <= MAX_PIDS and waiters <= MAX_PIDS:
        return row
    state = f"{row.state}; {counted(holders, 'holder')} and {counted(waiters, 'waiter')}"
    return LockInfo(row.kind, row.name, state, row.holders[:MAX_PIDS], row.waiters[:MAX_PIDS])


def _condition(lock: Lock) -> Condition:
    if lock.condition is None:
        lock.condition = Condition(lock)
    return lock.condition


def _check_count(what: str, count: int) -> None:
    if not isinstance(count, int) or count < 1:
        raise InvalidCall(f"{what} must be a whole number of at least 1, not {count!r}")


def _check_same(named: Primitive, what: str, has: int, asked: int) -> None:
    if has != asked:
        raise SyncMismatch(
            f"{named.kind} {named.name!r} has {what}={has}, not {asked}; give the same number everywhere"
        )
