"""What a thread can wait for, and who could end the wait.

Set as `Thread.waits_for` by whoever parks a thread, shown by `llmos ps`, read by deadlock detection. A plain string
stands for a wait that something outside can always end: a message from anyone, the clock, a model, a file.
"""

from __future__ import annotations

from collections.abc import Iterable

from kernel.core.process import Process, Thread, Wait


class _OnProcess:
    """A wait that any thread of `process` could end."""

    __slots__ = ("process",)
    what = ""

    def __init__(self, process: Process) -> None:
        self.process = process

    def __str__(self) -> str:
        return f"{self.what} of {self.process.pid}"

    def ended_by(self) -> Iterable[Thread] | None:
        # A client may do anything; and a process without threads is on its way out.
        return None if self.process.is_client or not self.process.threads else self.process.threads


class EndOf(_OnProcess):
    """`wait` for the end of a process."""

    __slots__ = ()
    what = "end"


class RoomIn(_OnProcess):
    """`send` or `call` to a process whose mailbox is full."""

    __slots__ = ()
    what = "mailbox"


class Uninterruptible:
    """A wait that no error can end early: for the lock that a condition gave up, and that has to be held again."""

    __slots__ = ("_wait",)

    def __init__(self, wait: Wait) -> None:
        self._wait = wait

    def __str__(self) -> str:
        return str(self._wait)

    def ended_by(self) -> Iterable[Thread] | None:
        return self._wait.ended_by()
