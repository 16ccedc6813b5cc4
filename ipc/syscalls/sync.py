"""Synchronisation: locks and their kin, named and shared by all processes.

Made at first use and forgotten when nobody holds one, waits for it or has set it. A thread holds, not a process, and
what it holds goes to who waits next when it ends. Clients only look: a thread of theirs lives as long as one request.
All but `Locks` may raise `InvalidCall`, `SyncMismatch` and `Busy` (too many names); those that wait, `TimedOut`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ipc.syscalls.base import Seconds, Syscall

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Number = Annotated[int, Meta(ge=1, le=1_000_000)]


class LockInfo(msgspec.Struct, frozen=True):
    """A lock, semaphore, condition, barrier or event (`kind`): its state in words, who holds it, who waits (pids)."""

    kind: str
    name: str
    state: str
    holders: list[int]
    waiters: list[int]


class Locks(Syscall, tag="locks"):
    """All of them that are held or waited for, and events that are set."""

    returns: ClassVar[Any] = list[LockInfo]


class AcquireLock(Syscall, tag="acquire_lock"):
    """Hold the lock `name`, in the order of asking; if `reentrant`, once more if it is held by this thread already.

    Errors: `DeadlockDetected`.
    """

    name: Name
    timeout: Seconds | None = None
    reentrant: bool = False


class ReleaseLock(Syscall, tag="release_lock"):
    """Undo one `AcquireLock`. Errors: `NotHeld`."""

    name: Name


class AcquirePermit(Syscall, tag="acquire_permit"):
    """Hold one of the `permits` of the semaphore `name`. Errors: `DeadlockDetected`."""

    name: Name
    permits: Number
    timeout: Seconds | None = None


class ReleasePermit(Syscall, tag="release_permit"):
    """Give back a permit that this thread holds. Errors: `NotHeld`."""

    name: Name


class WaitForNotice(Syscall, tag="wait_for_notice"):
    """Give up the lock `name`, wait for a `Notify`, and hold the lock again, whatever happens. Errors: `NotHeld`."""

    name: Name
    timeout: Seconds | None = None


class Notify(Syscall, tag="notify"):
    """Let the first `count` threads that wait for a notice go on, all if None; answers how many. Errors: `NotHeld`."""

    name: Name
    count: Number | None = 1
    returns: ClassVar[Any] = int


class WaitAtBarrier(Syscall, tag="wait_at_barrier"):
    """Wait until `parties` threads wait at the barrier `name`; answers whether this one was the last to come.

    One that gives up or dies before that no longer counts.
    """

    name: Name
    parties: Number
    timeout: Seconds | None = None
    returns: ClassVar[Any] = bool


class SetEvent(Syscall, tag="set_event"):
    """Set the event `name`: who waits for it goes on, and nobody waits until it is cleared."""

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
