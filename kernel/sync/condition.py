"""A condition: threads that hold its lock give it up, wait to be notified, and go on with the lock held again."""

from __future__ import annotations

from ipc.syscalls import LockInfo
from kernel.process import Thread
from kernel.sync.lock import Lock
from kernel.sync.queue import WaitQueue


class Condition:
    """Belongs to a lock, under the same name. `_inside` are the threads that wait, or are notified and come back."""

    __slots__ = ("_inside", "_lock", "_waiting")

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._waiting = WaitQueue()
        self._inside: set[Thread] = set()

    @property
    def idle(self) -> bool:
        return all(thread.done() for thread in self._inside)

    def info(self) -> LockInfo:
        waiters = [thread.process.pid for thread in self._waiting]
        return LockInfo("condition", self._lock.name, f"{len(waiters)} wait", [], waiters)

    async def wait(self, thread: Thread, timeout: float | None) -> None:
        """Until notified. The lock is held again on every way out, also by cancellation, `TimedOut`."""
        self._lock.check_held(thread)
        depth = self._lock.depth
        self._lock.drop(thread)
        self._inside.add(thread)
        try:
            await self._waiting.wait(thread, f"condition {self._lock.name}", timeout, self._pass_on)
        finally:
            try:
                await self._lock.regain(thread, depth)
            finally:
                self._inside.discard(thread)

    def notify(self, thread: Thread, count: int | None) -> int:
        """Let the first `count` of those that wait go on, all if None; how many these were. Raises `NotHeld`."""
        self._lock.check_held(thread)
        notified = 0
        while (count is None or notified < count) and self._waiting.grant() is not None:
            notified += 1
        return notified

    def _pass_on(self, thread: Thread) -> None:
        self._waiting.grant()
