"""Waits that only certain threads can end. Each wait names these threads.

The code that parks a thread sets `Thread.waits_for` to the wait. `llmos ps` shows it; deadlock detection reads it;
`llmos why` explains it. For waits that anything may end, see `plain_wait.py`. A wait never carries a value.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from ipc.syscalls import WaitFacts
from kernel.core.plain_wait import ThreadWait, named
from kernel.core.process import Process, Thread
from kernel.lib.wording import counted, quoted


class _OnProcess:
    """A wait that any thread of `process` can end."""

    __slots__ = ("process",)
    what = ""
    stage = ""

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

    def explain(self, thread: Thread) -> WaitFacts:
        process = self.process
        return WaitFacts(
            kind="end",
            doing=f"waiting for the end of process {process.pid} ({quoted(process.program)})",
            ends=f"process {process.pid} ends",
            awaits=process.pid,
        )


class RoomIn(_OnProcess):
    """The wait of `send` or `call` for room in a full mailbox."""

    __slots__ = ()
    what = "mailbox"

    def ended_by(self) -> Iterable[Thread] | None:
        # A message that expires makes room, too.
        box = self.process.mailbox
        return super().ended_by() if box is None or box.next_deadline == inf else None

    def explain(self, thread: Thread) -> WaitFacts:
        process, box = self.process, self.process.mailbox
        senders = [] if box is None else box.senders
        place = senders.index(thread) if thread in senders else 0
        limits = process.limits
        if box is None or box.taken >= box.capacity:
            limit = counted(0 if box is None else box.capacity, "message")
            bound = limits is not None and limits.mailbox is not None
        else:
            limit = f"{box.bytes} of at most {box.byte_capacity} bytes"
            bound = limits is not None and limits.mailbox_bytes is not None
        limit += ", the limit of the process" if bound else ", the default limit"
        return WaitFacts(
            kind="mailbox",
            doing=f"waiting for room in the mailbox of process {process.pid} ({quoted(process.program)})",
            place=place + 1,
            line=max(len(senders), 1),
            ahead=named(sender.process for sender in senders[:place]),
            ahead_count=place,
            state=f"The mailbox is full: it holds {limit}",
            ends=f"process {process.pid} has received {counted(place + 1, 'message')} or has ended",
            awaits=process.pid,
        )


class Uninterruptible:
    """The wait of a condition to get its lock back. No error can end this wait early."""

    __slots__ = ("_wait",)
    stage = ""

    def __init__(self, wait: ThreadWait) -> None:
        self._wait = wait

    def __str__(self) -> str:
        return str(self._wait)

    def ended_by(self) -> Iterable[Thread] | None:
        return self._wait.ended_by()

    def explain(self, thread: Thread) -> WaitFacts:
        return self._wait.explain(thread)
