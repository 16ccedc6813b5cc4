"""A barrier: threads wait at it until a number of them is there, then all go on, and it is closed for the next ones."""

from __future__ import annotations

from collections.abc import Iterator

from ipc.syscalls import LockInfo
from kernel.core.process import Thread
from kernel.sync.wait_queue import WaitQueue


class Barrier:
    """Opens when `parties` threads wait. One that gives up or dies before that no longer counts."""

    __slots__ = ("_waiting", "name", "parties")
    kind = "barrier"

    def __init__(self, name: str, parties: int) -> None:
        self.name = name
        self.parties = parties
        self._waiting = WaitQueue()

    @property
    def idle(self) -> bool:
        return not self._waiting

    def info(self) -> Iterator[LockInfo]:
        waiters = [thread.process.pid for thread in self._waiting]
        yield LockInfo(self.kind, self.name, f"{len(waiters)} of {self.parties} there", [], waiters)

    async def wait(self, thread: Thread, timeout: float | None) -> bool:
        """Until all are there. True for exactly one of them, the last to come."""
        if len(self._waiting) < self.parties - 1:
            await self._waiting.wait(thread, f"barrier {self.name}", timeout, _ignore)
            return False
        while self._waiting.grant() is not None:
            pass
        return True


def _ignore(thread: Thread) -> None:
    """The barrier has opened for the others as well: there is nothing to pass on."""
