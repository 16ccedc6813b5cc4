"""An event: a flag that threads wait for. While the flag is set, no thread needs to wait.

`Synchronisation` finds an event by name and calls it; `WaitQueue` does the waiting. An event never sets a timer itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipc.syscalls import LockInfo, WaitFacts
from kernel.core.process import Thread
from kernel.sync.wait_queue import WaitQueue


class Event:
    """A flag. `set` ends the wait of all waiting threads, even if the flag is cleared before they run."""

    __slots__ = ("_waiting", "is_set", "name")
    kind = "event"
    stage = ""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_set = False
        self._waiting = WaitQueue()

    def __str__(self) -> str:
        return f"event {self.name}"

    def ended_by(self) -> None:
        """None: any thread may set the event."""

    def explain(self, thread: Thread) -> WaitFacts:
        return self._waiting.facts(thread, self.kind, self.name, "a thread sets the event")

    @property
    def idle(self) -> bool:
        return not self.is_set and not self._waiting

    def info(self) -> Iterator[LockInfo]:
        waiters = [thread.process.pid for thread in self._waiting]
        yield LockInfo(self.kind, self.name, "set" if self.is_set else "not set", [], waiters)

    async def wait(self, thread: Thread, timeout: float | None) -> None:
        """Wait until `set` is called the next time. The caller has checked that the event is not set."""
        await self._waiting.wait(thread, self, timeout, _drop_grant)

    def set(self) -> None:
        self.is_set = True
        while self._waiting.grant() is not None:
            pass

    def clear(self) -> None:
        self.is_set = False


def _drop_grant(thread: Thread) -> None:
    """Do nothing: `set` has ended the wait of all waiting threads, so no other thread needs the grant."""
