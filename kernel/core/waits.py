"""Waits that only certain threads can end, and which threads these are.

The code that parks a thread sets one as `Thread.waits_for`, `llmos ps` shows it, and deadlock detection reads it. A
plain string is a wait that something outside can always end: a message from anyone, the clock, a model, a file. A wait
never carries a value.
"""

from __future__ import annotations

from collections.abc import Iterable

from kernel.core.process import BlockedOn, Process, Thread


class _OnProcess:
    """A wait that any thread of `process` can end."""

    __slots__ = ("process",)
    what = ""

    def __init__(self, process: Process) -> None:
        self.process = process

    def __str__(self) -> str:
        return f"{self.what} of {self.process.pid}"

    def ended_by(self) -> Iterable[Thread] | None:
        # A client may do anything, and a process without threads is about to end.
        return None if self.process.is_client or not self.process.threads else self.process.threads


class EndOf(_OnProcess):
    """The wait of `wait` for the end of a process."""

    __slots__ = ()
    what = "end"


class RoomIn(_OnProcess):
    """The wait of `send` or `call` for room in a full mailbox."""

    __slots__ = ()
    what = "mailbox"


class Uninterruptible:
    """A wait that no error can end early: for the lock that a condition released and must hold again on return."""

    __slots__ = ("_wait",)

    def __init__(self, wait: BlockedOn) -> None:
        self._wait = wait

    def __str__(self) -> str:
        return str(self._wait)

    def ended_by(self) -> Iterable[Thread] | None:
        return self._wait.ended_by()
