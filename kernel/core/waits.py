"""Waits that only certain threads can end. Each wait names these threads.

The code that parks a thread sets `Thread.waits_for` to the wait. `llmos ps` shows it; deadlock detection reads it. A
plain string stands for a wait that may always end: by a message, the clock, a model or a file, or by any thread that
sets an event or arrives at a barrier. A wait never carries a value.
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
        # A client can always end the wait, and a process without threads is about to end.
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
    """The wait of a condition to get its lock back. No error can end this wait early."""

    __slots__ = ("_wait",)

    def __init__(self, wait: BlockedOn) -> None:
        self._wait = wait

    def __str__(self) -> str:
        return str(self._wait)

    def ended_by(self) -> Iterable[Thread] | None:
        return self._wait.ended_by()
