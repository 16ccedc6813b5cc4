"""An event: a flag that threads wait for; once set, nobody waits until it is cleared."""

from __future__ import annotations

from collections.abc import Iterator

from ipc.syscalls import LockInfo
from kernel.core.process import Thread
from kernel.sync.wait_queue import WaitQueue


class Event:
    """Set or not. A thread that waited when it was set goes on, also if it is cleared before the thread looks."""

    __slots__ = ("_waiting", "is_set", "name")
    kind = "event"

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_set = False
        self._waiting = WaitQueue()

    @property
    def idle(self) -> bool:
        return not self.is_set and not self._waiting

    def info(self) -> Iterator[LockInfo]:
        waiters = [thread.process.pid for thread in self._waiting]
        yield LockInfo(self.kind, self.name, "set" if self.is_set else "not set", [], waiters)

    async def wait(self, thread: Thread, timeout: float | None) -> None:
        """Until it is set the next time."""
        await self._waiting.wait(thread, f"event {self.name}", timeout, _ignore)

    def set(self) -> None:
        self.is_set = True
        while self._waiting.grant() is not None:
            pass

    def clear(self) -> None:
        self.is_set = False


def _ignore(thread: Thread) -> None:
    """All that waited were let go: there is nothing to pass on."""
