"""The journal as the loop sees it: hand something over, and be called when it is on the disk. It never waits.

Used by the task subsystem. All that is asked for in one turn of the loop goes to the journal's thread together.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ipc.errors import Busy, JournalUnavailable, LlmosError, StateInUse
from kernel.journal.changes import Change
from kernel.journal.histories import Opening
from kernel.journal.records import Accepted, TaskEnd
from kernel.journal.requests import Accept, Answer, Copy, Finish, Operation, Persist, Read
from kernel.journal.settings import FILE, LOCK, JournalSettings
from kernel.lib import lockfile

if TYPE_CHECKING:
    from kernel.journal.store import Store

WAITING = 100_000  # tasks that may wait for their commit


class Journal:
    """The journal in `folder`, which is locked until it is closed.

    `on_opened` are called first, with what has to be known before anybody is answered anything; then `on_pending` with
    the tasks that earlier lives left, portion by portion and the last one empty, before anything is answered;
    `on_failure` with why it cannot be opened or go on. Add to them before the loop goes on.
    """

    def __init__(self, folder: Path, settings: JournalSettings) -> None:
        """Raises `StateInUse` with the pid of the daemon that has it, and `JournalUnavailable`."""
        self.on_opened: list[Callable[[Opening], None]] = []
        self.on_pending: list[Callable[[list[Accepted]], None]] = []
        self.on_failure: list[Callable[[LlmosError], None]] = []
        self._loop = asyncio.get_running_loop()
        self._path = folder / FILE
        self._settings = settings
        self._queue: SimpleQueue[list[Operation] | None] = SimpleQueue()
        self._turn: list[Operation] = []  # what was asked for in this turn of the loop
        self._waiting = 0
        self._closed = False
        self._gone = asyncio.Event()
        try:
            self._lock = lockfile.take(folder / LOCK)
        except lockfile.LockHeld as error:
            raise StateInUse(
                f"a daemon with pid {error.pid or 'unknown'} keeps its state in {folder}; stop it with `llmos "
                "shutdown`, or choose another folder with --state",
                pid=error.pid,
            ) from None
        except OSError as error:
            raise JournalUnavailable(f"cannot write in {folder}: {error.strerror}") from None
        threading.Thread(target=self._run, name="journal", daemon=True).start()

    def accept(self, task: Accepted, answer: Answer) -> None:
        """Record `task`; `answer` is called with it once it is on disk, or with the `TaskRow` one of the same key.

        Or with `KeyReused` or `JournalUnavailable`. Raises `Busy` if too many wait already.
        """
        if self._waiting >= WAITING:
            raise Busy(f"{WAITING} tasks wait for the disk, which is the limit; try later", retry_after=1.0)

        self._waiting += 1
        self._ask(Accept(task, answer))

    def finish(self, end: TaskEnd, answer: Answer) -> None:
        """Persist how a task ended; `answer` is called with None once it is on disk.

        If the disk does not take it, `answer` is called with `JournalUnavailable` first, and with None later.
        """
        self._ask(Finish(end, answer))

    def keep(self, changes: Sequence[Change], answer: Answer) -> None:
        """Make `changes`, after all that was asked for before; `answer` is called as by `finish`.

        What is asked for in one turn of the loop is written in one transaction, and all in the order of asking.
        """
        self._ask(Persist(changes, answer))

    async def read(self, query: Callable[[Store], Any]) -> Any:
        """What `query` finds in the store, after all that was asked for before. Raises `JournalUnavailable`."""
        return await self._asked(partial(Read, query))

    async def backup(self, path: Path) -> int:
        """Copy everything that was asked for before to a new file, and return its size in bytes.

        Raises `BackupFailed`, and `Busy` while another copy is made.
        """
        size: int = await self._asked(partial(Copy, path))
        return size

    async def _asked(self, make: Callable[[Answer], Operation]) -> Any:
        """What comes of an operation. Raises its error."""
        found: asyncio.Future[Any] = self._loop.create_future()

        def answer(outcome: Any) -> None:
            if found.done():
                return  # the caller gave up
            if isinstance(outcome, LlmosError):
                found.set_exception(outcome)
            else:
                found.set_result(outcome)

        self._ask(make(answer))
        return await found

    async def close(self) -> None:
        """Write what was asked for, and end in order."""
        if self._closed:
            return
        self._hand_over()
        self._closed = True
        self._queue.put(None)
        await self._gone.wait()
        os.close(self._lock)

    def _ask(self, operation: Operation) -> None:
        if not self._turn:
            self._loop.call_soon(self._hand_over)
        self._turn.append(operation)

    def _hand_over(self) -> None:
        if self._turn and not self._closed:
            self._queue.put(self._turn)
        self._turn = []

    # ---- on the thread

    def _run(self) -> None:
        # Imported here, so that loading SQLite holds up neither the start of the daemon nor its loop.
        try:
            from kernel.journal.writer import Writer, WriterCallbacks
        except ImportError as error:
            self._tell(self._told_failure, JournalUnavailable(f"SQLite cannot be loaded: {error}; install apsw anew"))
            self._tell(self._told_end, None)
            return
        told = WriterCallbacks(self._told_opening, self._told_pending, self._told_failure, self._told_answers)
        Writer(self._path, self._settings, self._queue, self._tell, told).run()
        self._tell(self._told_end, None)

    def _tell(self, function: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(function, value)

    def _told_opening(self, opening: Opening) -> None:
        for hook in self.on_opened:
            hook(opening)

    def _told_pending(self, tasks: list[Accepted]) -> None:
        for hook in self.on_pending:
            hook(tasks)

    def _told_failure(self, error: LlmosError) -> None:
        for hook in self.on_failure:
            hook(error)

    def _told_answers(self, operations: Sequence[Operation]) -> None:
        """Hand each outcome to whoever waits for it."""
        self._waiting -= sum(type(one) is Accept for one in operations)
        for one in operations:
            one.answer(one.outcome)

    def _told_end(self, _: None) -> None:
        self._gone.set()
