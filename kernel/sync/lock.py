"""A lock and its condition. One thread holds the lock at a time, and waiting threads get it in the order of asking.

A wait on the condition releases the lock until the thread is notified, and acquires the lock again before it returns.
`Synchronisation` finds a lock by name and calls it; `WaitQueue` does the waiting. Neither class ever sets a timer.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipc.errors import NotHeld
from ipc.syscalls import LockInfo, WaitFacts
from kernel.core.process import Thread
from kernel.core.waits import Uninterruptible
from kernel.sync.wait_queue import WaitQueue


class Lock:
    """Held by at most one thread, which has acquired it `depth` times. Also the wait of its waiting threads."""

    __slots__ = ("condition", "depth", "holder", "name", "waiting")
    kind = "lock"
    stage = ""

    def __init__(self, name: str) -> None:
        self.name = name
        self.holder: Thread | None = None
        self.depth = 0
        self.waiting = WaitQueue()
        self.condition: Condition | None = None  # created at first use

    def __str__(self) -> str:
        return f"lock {self.name}" + ("" if self.holder is None else f" held by {self.holder.process.pid}")

    def ended_by(self) -> tuple[Thread, ...]:
        return () if self.holder is None else (self.holder,)

    def explain(self, thread: Thread) -> WaitFacts:
        holders = () if self.holder is None else (self.holder,)
        pid = "" if self.holder is None else f"process {self.holder.process.pid} releases it or ends"
        ahead = " and those ahead of it have had it" if next(iter(self.waiting), thread) is not thread else ""
        return self.waiting.facts(thread, self.kind, self.name, pid + ahead, holders=holders)

    @property
    def idle(self) -> bool:
        return self.holder is None and (self.condition is None or self.condition.idle)

    def info(self) -> Iterator[LockInfo]:
        if self.holder is not None:
            state = "held" if self.depth == 1 else f"held {self.depth} times"
            yield LockInfo(
                self.kind, self.name, state, [self.holder.process.pid], [thread.process.pid for thread in self.waiting]
            )
        if self.condition is not None and not self.condition.idle:
            yield self.condition.info()

    async def acquire(self, thread: Thread, timeout: float | None, *, reentrant: bool) -> None:
        """Acquire the lock. Raises `DeadlockDetected` if the holder acquires it again without `reentrant`."""
        if self.holder is None:
            self._give(thread)
        elif self.holder is thread and reentrant:
            self.depth += 1
        else:
            await self.waiting.wait(thread, self, timeout, self.drop)

    def release(self, thread: Thread) -> None:
        """Undo one `acquire`. Raises `NotHeld` if `thread` does not hold the lock."""
        self.check_held(thread)
        self.depth -= 1
        if not self.depth:
            self.drop(thread)

    def check_held(self, thread: Thread) -> None:
        if self.holder is not thread:
            who = "nobody" if self.holder is None else f"another thread (process {self.holder.process.pid})"
            raise NotHeld(f"lock {self.name!r} is held by {who}; acquire it in this thread first")

    def drop(self, thread: Thread) -> None:
        """Take the lock from its holder `thread`, whatever the depth, and hand the lock to the next waiting thread."""
        thread.forget(self)
        self.holder, self.depth = None, 0
        next_thread = self.waiting.grant()
        if next_thread is not None:
            self._give(next_thread)

    async def regain(self, thread: Thread, depth: int) -> None:
        """Acquire the lock again, with this depth. Then raise the cancellation that arrived meanwhile, if any."""
        if self.holder is None:
            self._give(thread)
            self.depth = depth
            return
        cancelled = await self.waiting.wait_uninterruptibly(thread, Uninterruptible(self))
        self.depth = depth
        if cancelled is not None:
            raise cancelled

    def _give(self, thread: Thread) -> None:
        self.holder, self.depth = thread, 1
        thread.hold(self)


class Condition:
    """Belongs to the lock of the same name. `_users` are all threads inside `wait`, including notified ones."""

    __slots__ = ("_lock", "_users", "_waiting")
    stage = ""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._waiting = WaitQueue()
        self._users: set[Thread] = set()

    def __str__(self) -> str:
        return f"condition {self._lock.name}"

    def ended_by(self) -> None:
        """None: any thread may notify the condition."""

    def explain(self, thread: Thread) -> WaitFacts:
        ends = "a thread that holds the lock of the same name notifies it, and the lock is free"
        return self._waiting.facts(thread, "condition", self._lock.name, ends)

    @property
    def idle(self) -> bool:
        return all(thread.done() for thread in self._users)

    def info(self) -> LockInfo:
        waiters = [thread.process.pid for thread in self._waiting]
        return LockInfo("condition", self._lock.name, f"{len(waiters)} waiting", [], waiters)

    async def wait(self, thread: Thread, timeout: float | None) -> None:
        """Wait until notified. When the wait ends, even by a cancellation or `TimedOut`, the lock is held again."""
        self._lock.check_held(thread)
        depth = self._lock.depth
        self._lock.drop(thread)
        self._users.add(thread)
        try:
            await self._waiting.wait(thread, self, timeout, self._pass_on)
        finally:
            try:
                await self._lock.regain(thread, depth)
            finally:
                self._users.discard(thread)

    def notify(self, thread: Thread, count: int | None) -> int:
        """Notify the first `count` waiting threads (None: all). Returns how many were notified. Raises `NotHeld`."""
        self._lock.check_held(thread)
        notified = 0
        while (count is None or notified < count) and self._waiting.grant() is not None:
            notified += 1
        return notified

    def _pass_on(self, thread: Thread) -> None:
        self._waiting.grant()
