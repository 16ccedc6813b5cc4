"""A barrier: threads wait until a given number of threads has arrived. Then all go on, and the barrier closes again.

`Synchronisation` finds a barrier by name and calls it; `WaitQueue` does the waiting. A barrier never sets a timer
itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipc.syscalls import LockInfo, WaitFacts
from kernel.core.process import Thread
from kernel.lib.wording import counted
from kernel.sync.wait_queue import WaitQueue


class Barrier:
    """Opens when `parties` threads have arrived. A thread that gives up or ends before that no longer counts."""

    __slots__ = ("_waiting", "name", "parties")
    kind = "barrier"
    stage = ""

    def __init__(self, name: str, parties: int) -> None:
        self.name = name
        self.parties = parties
        self._waiting = WaitQueue()

    def __str__(self) -> str:
        return f"barrier {self.name}"

    def ended_by(self) -> None:
        """None: any thread may arrive at the barrier."""

    def explain(self, thread: Thread) -> WaitFacts:
        arrived = len(list(self._waiting))
        missing = self.parties - arrived
        state = f"{arrived} of {counted(self.parties, 'thread')} {'has' if arrived == 1 else 'have'} arrived"
        return self._waiting.facts(
            thread,
            self.kind,
            self.name,
            f"{counted(missing, 'more thread')} {'arrives' if missing == 1 else 'arrive'}",
            state=state,
        )

    @property
    def idle(self) -> bool:
        return not self._waiting

    def info(self) -> Iterator[LockInfo]:
        waiters = [thread.process.pid for thread in self._waiting]
        yield LockInfo(self.kind, self.name, f"{len(waiters)} of {self.parties} waiting", [], waiters)

    async def wait(self, thread: Thread, timeout: float | None) -> bool:
        """Wait until `parties` threads have arrived. Returns True in exactly one thread, the last to arrive."""
        if len(self._waiting) < self.parties - 1:
            await self._waiting.wait(thread, self, timeout, _drop_grant)
            return False
        while self._waiting.grant() is not None:
            pass
        return True


def _drop_grant(thread: Thread) -> None:
    """Do nothing: the barrier has opened for all waiting threads, so no other thread needs the grant."""
