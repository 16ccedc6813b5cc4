"""The ledger: a record, apart from the kernel's, of the messages that were put into mailboxes, received and buried.

Filled by wrappers of the kernel's functions and by the actors; checked by `invariants`. It never changes what the
kernel does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ipc.codec import reveal
from ipc.messages import Message
from ipc.syscalls import ExitStatus
from kernel.core.mailbox import CONTROL, Mailbox
from kernel.core.process import Process, Thread
from kernel.core.selector import Selector
from kernel.kernel import Kernel


class Ledger:
    """Messages by id. `problems`: faults that were found the moment they happened."""

    def __init__(self, kernel: Kernel) -> None:
        self.put: dict[int, Message] = {}
        self.sent: set[int] = set()  # ids that `send` answered
        self.received: Counter[int] = Counter()
        self.buried: Counter[int] = Counter()
        self.taken_back: set[int] = set()  # monitors that were given up
        self.monitors: dict[int, tuple[int, int]] = {}  # by reference: the pids of the watcher and of the watched
        self.links: set[frozenset[int]] = set()
        self.torn: list[tuple[int, int]] = []  # pids of one that ended badly, and of one linked to it
        self.usage: dict[int, tuple[float, ...]] = {}
        self.answers: set[Any] = set()  # replies to calls of actors that were neither read nor buried yet
        self.promises: set[str] = set()  # waits with a time limit that have begun and not ended
        self.inside: dict[str, list[Any]] = {}  # by lock or semaphore: the threads in its critical section
        self.problems: list[str] = []
        self._place: dict[int, int] = {}  # of a message among all that were put
        self._order: dict[tuple[Any, int, int], int] = {}
        self._kernel = kernel
        kernel.process_exit.on_end.append(self._ended)
        kernel.process_exit.on_thread_end.insert(0, self._thread_ended)
        bury = kernel.messaging.dead_letters.bury

        def buried(message: Message, reason: str) -> None:
            self.buried[message.id] += 1
            if message.type == "reply" and message.correlation:
                self.answers.discard(reveal(message.body)[-1])
            bury(message, reason)

        kernel.messaging.dead_letters.bury = buried  # type: ignore[method-assign]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record every message that is put into a mailbox."""
        put = Mailbox.put

        def noted(box: Mailbox, message: Message) -> None:
            self.entered(message)
            put(box, message)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Mailbox, "put", noted)
            yield

    def entered(self, message: Message) -> None:
        if message.id in self.put:
            self.problems.append(f"message {message.id} was put twice")
        self.put[message.id] = message
        self._place[message.id] = len(self.put)
        if message.priority != CONTROL:
            line = asyncio.current_task(), message.recipient, message.priority
            if self._order.get(line, 0) > message.id:
                self.problems.append(f"message {message.id} was put after a later one of the same sender and priority")
            self._order[line] = message.id

    def in_order(self, process: Process, message: Message, selection: Selector | None) -> None:
        """`process` has just received `message`: each that is left must be less urgent or newer."""
        place = self._place
        rest = process.mailbox.peek() if process.mailbox is not None else ()
        for other in rest:
            if selection is not None and not selection.matches(other):
                continue
            if other.priority > message.priority or (
                other.priority == message.priority and place[other.id] < place[message.id]
            ):
                self.problems.append(f"message {message.id} was received before {other.id}")

    def nothing_for(self, process: Process, selection: Selector) -> None:
        """A `receive` of `process` timed out: its mailbox must hold no such message."""
        now = self._kernel.loop.time()
        for message in process.mailbox.peek() if process.mailbox is not None else ():
            if selection.matches(message) and (message.deadline is None or message.deadline > now):
                self.problems.append(f"process {process.pid} timed out on {selection}, but had {message}")

    @contextmanager
    def replying(self, call: Message) -> Iterator[None]:
        """`call` is being answered: if that succeeds, its caller must get the answer, unless it is a visitor."""
        answer = {call.body} if "visitor" not in call.body else set()
        self.answers |= answer
        try:
            yield
        except BaseException:
            self.answers -= answer
            raise

    def enter(self, name: str, who: Any, most: int) -> None:
        """`who` got lock or semaphore `name`."""
        inside = self.inside.setdefault(name, [])
        inside.append(who)
        if len(inside) > most:
            self.problems.append(f"{len(inside)} are inside {name}, which admits {most}")

    def held_by(self, who: Any) -> set[str]:
        """The names of the locks and semaphores that `who` is inside of."""
        return {name for name, inside in self.inside.items() if who in inside}

    def leave(self, name: str, who: Any) -> None:
        if who in self.inside.get(name, ()):
            self.inside[name].remove(who)

    def _thread_ended(self, thread: Thread) -> None:
        """A thread that has ended holds nothing."""
        for inside in self.inside.values():
            inside[:] = [who for who in inside if who is not thread]

    def _ended(self, process: Process) -> None:
        status = process.status
        assert isinstance(status, ExitStatus)
        for pair in [pair for pair in self.links if process.pid in pair]:
            self.links.discard(pair)
            (peer,) = pair - {process.pid}
            if status.reason != "done":
                self.torn.append((process.pid, peer))

    def note_usage(self) -> None:
        """Check that no counter of any process has shrunk since the last time."""
        table = self._kernel.table
        for process in (*table.alive.values(), *table.ended.values()):
            usage = process.usage()
            now = tuple(getattr(usage, name) for name in usage.__struct_fields__)
            before = self.usage.get(process.pid, now)
            if any(one < other for one, other in zip(now, before, strict=True)):
                self.problems.append(f"usage of process {process.pid} went from {before} to {now}")
            self.usage[process.pid] = now
