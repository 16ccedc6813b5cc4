"""A semaphore: a number of permits, each held by a thread. Waiting threads get permits in the order of asking.

`Synchronisation` finds a semaphore by name and calls it; `WaitQueue` does the waiting. A semaphore never sets a timer
itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from ipc.errors import NotHeld
from ipc.syscalls import LockInfo, WaitFacts
from kernel.core.process import Thread
from kernel.sync.wait_queue import WaitQueue

NAMED_HOLDERS = 4  # the most pids that `str` of a semaphore names


class Semaphore:
    """Has `permits` permits. Any holder can end a wait, so there is no deadlock while at least one holder can go on."""

    __slots__ = ("_free", "_holders", "name", "permits", "waiting")
    kind = "semaphore"
    stage = ""

    def __init__(self, name: str, permits: int) -> None:
        self.name = name
        self.permits = permits
        self._free = permits
        self._holders: dict[Thread, int] = {}
        self.waiting = WaitQueue()

    def __str__(self) -> str:
        pids = [str(thread.process.pid) for thread in itertools.islice(self._holders, NAMED_HOLDERS)]
        more = " and others" if len(self._holders) > NAMED_HOLDERS else ""
        return f"semaphore {self.name}" + (f" held by {', '.join(pids)}{more}" if pids else "")

    def ended_by(self) -> Iterable[Thread]:
        return self._holders  # no copy: there may be many, and a search for a knot looks at few of them

    def explain(self, thread: Thread) -> WaitFacts:
        state = f"All of its {self.permits} permits are taken" if self.permits > 1 else "Its only permit is taken"
        ends = "a holder releases a permit or ends" if len(self._holders) > 1 else "the holder releases it or ends"
        return self.waiting.facts(thread, self.kind, self.name, ends, state=state, holders=self._holders)

    @property
    def idle(self) -> bool:
        return not self._holders

    def info(self) -> Iterator[LockInfo]:
        holders = [thread.process.pid for thread, count in self._holders.items() for _ in range(count)]
        waiters = [thread.process.pid for thread in self.waiting]
        yield LockInfo(self.kind, self.name, f"{self._free} of {self.permits} free", holders, waiters)

    async def acquire(self, thread: Thread, timeout: float | None) -> None:
        if self._free:
            self._free -= 1
            self._give(thread)
        else:
            await self.waiting.wait(thread, self, timeout, self.release)

    def release(self, thread: Thread) -> None:
        """Take one permit back from `thread` and hand it to the next waiting thread. Raises `NotHeld`."""
        count = self._holders.get(thread, 0)
        if not count:
            raise NotHeld(f"this thread holds no permit of semaphore {self.name!r}; acquire one in this thread first")
        if count == 1:
            del self._holders[thread]
            thread.forget(self)
        else:
            self._holders[thread] = count - 1
        next_thread = self.waiting.grant()
        if next_thread is None:
            self._free += 1
        else:
            self._give(next_thread)

    def drop(self, thread: Thread) -> None:
        """Take all permits back from `thread`."""
        while thread in self._holders:
            self.release(thread)

    def _give(self, thread: Thread) -> None:
        self._holders[thread] = self._holders.get(thread, 0) + 1
        thread.hold(self)
