"""Synchronisation: locks, semaphores, conditions, barriers and events, by name, shared by all processes.

A primitive is made at its first use. It is deleted when no thread holds it, no thread waits for it, and it is not set.
A thread, not its process, holds a lock or permit; when the thread ends, the next waiting thread gets it. Waiting
threads are served in the order of arrival. All calls but `Locks` are only for agents, and may raise `InvalidCall`,
`SyncMismatch` and `Busy` (too many names). A call with a `timeout` raises `TimedOut` after so many seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ipc.syscalls.base import Seconds, Syscall

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Number = Annotated[int, Meta(ge=1, le=1_000_000)]


class LockInfo(msgspec.Struct, frozen=True):
    """A lock, semaphore, condition, barrier or event (`kind`), its state in words, and the pids of holders and waiters.

    A pid is repeated for each permit that the process holds, and for each of its waiting threads. Both lists
    have at most 100 pids; if there are more, `state` says how many.
    """

    kind: str
    name: str
    state: str
    holders: list[int]
    waiters: list[int]


class Locks(Syscall, tag="locks"):
    """Answers the primitives that are held, waited for, or set, sorted by name: one page of those after `after`.

    Without `after`, it answers all. Errors: `LimitExceeded` if these are more than a page.
    """

    after: str | None = None
    page: ClassVar[int] = 1_000
    returns: ClassVar[Any] = list[LockInfo]


class AcquireLock(Syscall, tag="acquire_lock"):
    """Acquire the lock `name`. With `reentrant`, the thread that holds it may acquire it again.

    Errors: `DeadlockDetected`, also if the holder acquires it again without `reentrant`.
    """

    name: Name
    timeout: Seconds | None = None
    reentrant: bool = False


class ReleaseLock(Syscall, tag="release_lock"):
    """Undo one `AcquireLock`. Errors: `NotHeld`."""

    name: Name


class AcquirePermit(Syscall, tag="acquire_permit"):
    """Acquire one of the `permits` of the semaphore `name`. Errors: `DeadlockDetected`."""

    name: Name
    permits: Number
    timeout: Seconds | None = None


class ReleasePermit(Syscall, tag="release_permit"):
    """Release a permit that this thread holds. Errors: `NotHeld`."""

    name: Name


class WaitForNotice(Syscall, tag="wait_for_notice"):
    """Release the lock `name`, wait for a `Notify`, and acquire the lock again, even if the wait fails or is cancelled.

    Errors: `NotHeld`.
    """

    name: Name
    timeout: Seconds | None = None


class Notify(Syscall, tag="notify"):
    """Wake the first `count` threads that wait for a notice (None: all of them); answers how many it woke.

    Errors: `NotHeld`, if the calling thread does not hold the lock `name`.
    """

    name: Name
    count: Number | None = 1
    returns: ClassVar[Any] = int


class WaitAtBarrier(Syscall, tag="wait_at_barrier"):
    """Wait until `parties` threads wait at the barrier `name`; answers True in the last thread, else False.

    A thread that times out or ends while it waits no longer counts.
    """

    name: Name
    parties: Number
    timeout: Seconds | None = None
    returns: ClassVar[Any] = bool


class SetEvent(Syscall, tag="set_event"):
    """Set the event `name`: all waiting threads go on, and later waits return immediately until it is cleared."""

    name: Name


class ClearEvent(Syscall, tag="clear_event"):
    """Undo `SetEvent`."""

    name: Name


class WaitForEvent(Syscall, tag="wait_for_event"):
    """Wait until the event `name` is set."""

    name: Name
    timeout: Seconds | None = None


SyncCalls = (
    Locks
    | AcquireLock
    | ReleaseLock
    | AcquirePermit
    | ReleasePermit
    | WaitForNotice
    | Notify
    | WaitAtBarrier
    | SetEvent
    | ClearEvent
    | WaitForEvent
)
