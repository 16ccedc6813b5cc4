"""The loop's side of the journal: takes a request, and calls back when it is on disk.

Called by the task subsystem and by durable processes. All requests of one turn of the loop go to the journal's thread
together. The loop never waits for the disk.
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

import structlog

from ipc.errors import Busy, JournalUnavailable, LlmosError, StateInUse, brief
from kernel.journal.changes import Change, StopBegan
from kernel.journal.histories import RecoveredState
from kernel.journal.records import AcceptedTask, TaskEnd
from kernel.journal.requests import Accept, Answer, Answered, Copy, Finish, Operation, Persist, Read
from kernel.journal.settings import FILE, LOCK, JournalSettings
from kernel.lib import lockfile
from kernel.lib.failures import traceback_text

if TYPE_CHECKING:
    from kernel.journal.store import Store

MAX_WAITING = 100_000  # tasks that may wait for their commit at the same time

log = structlog.get_logger("kernel.journal")


class Journal:
    """The journal in `folder`. The folder is locked until the journal is closed.

    Before the journal answers a request, it calls `on_opened` and then `on_pending`. `on_opened` gets the state that
    the daemon needs before it answers clients. `on_pending` gets the tasks of previous runs, in portions; the last
    portion may be empty. `on_failure` gets the error if the file cannot be opened, if the thread fails, or if a hook
    of `on_opened` raises. Add hooks before the loop runs again. An error in any other hook or in an answer is logged,
    and costs no other caller its answer.
    """

    def __init__(self, folder: Path, settings: JournalSettings) -> None:
        """Raises `StateInUse` with the pid of the daemon that uses the folder, and `JournalUnavailable`."""
        self.on_opened: list[Callable[[RecoveredState], None]] = []
        self.on_pending: list[Callable[[list[AcceptedTask]], None]] = []
        self.on_failure: list[Callable[[LlmosError], None]] = []
        self._loop = asyncio.get_running_loop()
        self._path = folder / FILE
        self._settings = settings
        self._queue: SimpleQueue[list[Operation] | None] = SimpleQueue()
        self._requests: list[Operation] = []  # the requests of this turn of the loop
        self._waiting = 0
        self._stop_began = False
        self._closed = False
        self._ended = asyncio.Event()
        self._lock: int | None = None
        try:
            self._lock = lockfile.take(folder / LOCK)
        except lockfile.LockHeld as error:
            raise StateInUse(
                f"a daemon with pid {error.pid or 'unknown'} uses the state folder {folder}; stop it with `llmos "
                "shutdown`, or choose another folder with --state",
                pid=error.pid,
            ) from None
        except OSError as error:
            raise JournalUnavailable(
                f"cannot write in {folder}: {error.strerror}; choose another folder with --state"
            ) from None
        threading.Thread(target=self._run, name="journal", daemon=True).start()

    @property
    def waiting(self) -> int:
        """The number of tasks that wait for their commit."""
        return self._waiting

    @property
    def closed(self) -> bool:
        """Whether all is written, and the file is closed."""
        return self._ended.is_set()

    def accept(self, task: AcceptedTask, answer: Answer) -> None:
        """Persist `task`, and call `answer` with the task once it is on disk.

        If an earlier task has the same key, `answer` gets the `TaskRow` of that task, or `KeyReused` if it is other
        work. If the disk refuses the task, `answer` gets `JournalUnavailable`. Raises `Busy` if too many tasks wait.
        """
        if self._waiting >= MAX_WAITING:
            raise Busy(f"{MAX_WAITING} tasks wait for the disk, which is the limit; try again later", retry_after=1.0)

        self._waiting += 1
        self._enqueue(Accept(task, answer))

    def finish(self, end: TaskEnd, answer: Answer) -> None:
        """Persist the end of a task. `answer` is called with None once the end is on disk.

        If the disk refuses the end, `answer` is called with `JournalUnavailable` first, and with None later.
        """
        self._enqueue(Finish(end, answer))

    def persist(self, changes: Sequence[Change], answer: Answer) -> None:
        """Apply `changes` after all earlier requests. `answer` is called as by `finish`.

        The requests of one turn of the loop are in one transaction, and all requests are written in their order.
        """
        self._enqueue(Persist(changes, answer))

    async def read(self, query: Callable[[Store], Any]) -> Any:
        """Run `query` on the store after all earlier requests, and return its result. Raises `JournalUnavailable`."""
        return await self._request(partial(Read, query))

    async def backup(self, path: Path) -> int:
        """Copy the journal, with all earlier requests, to a new file. Returns the size of the copy in bytes.

        Raises `BackupFailed`, and `Busy` while another backup is in progress.
        """
        size: int = await self._request(partial(Copy, path))
        return size

    async def _request(self, make: Callable[[Answer], Operation]) -> Any:
        """Request an operation, and return its outcome. Raises the outcome if it is an error."""
        found: asyncio.Future[Any] = self._loop.create_future()

        def answer(outcome: Any) -> None:
            if found.done():
                return  # the caller gave up
            if isinstance(outcome, LlmosError):
                found.set_exception(outcome)
            else:
                found.set_result(outcome)

        self._enqueue(make(answer))
        return await found

    def stop_began(self) -> None:
        """Record that the daemon stops on request: however it ends from now on, the next run counts no crash.

        Callable from any thread, also while the loop hangs. Only the first call has an effect.
        """
        if not self._stop_began and not self._closed:
            self._stop_began = True
            self._queue.put([Persist((StopBegan(),), lambda error: None)])

    async def close(self) -> None:
        """Write all earlier requests, then close the file and end the thread. Later requests are refused.

        If the caller is cancelled, the thread closes the file nevertheless.
        """
        if not self._closed:
            self._hand_over()
            self._closed = True
            self._queue.put(None)
        await self._ended.wait()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _enqueue(self, operation: Operation) -> None:
        if not self._requests:
            self._loop.call_soon(self._hand_over)
        self._requests.append(operation)

    def _hand_over(self) -> None:
        requests, self._requests = self._requests, []
        if not requests:
            return
        if not self._closed and not self._ended.is_set():
            self._queue.put(requests)
            return
        error = JournalUnavailable("the journal is closed, because the daemon stops; try again with the next run")
        self._deliver([(one, error) for one in requests])

    # ---- on the thread

    def _run(self) -> None:
        try:
            self._write()
        finally:
            self._call_on_loop(self._thread_ended, None)

    def _write(self) -> None:
        # Imported here, so that this thread loads SQLite, which delays neither the start of the daemon nor the loop.
        try:
            from kernel.journal.writer import Writer, WriterCallbacks
        except ImportError as error:
            self._call_on_loop(self._failed, JournalUnavailable(f"SQLite cannot be loaded: {error}; reinstall apsw"))
            return
        callbacks = WriterCallbacks(self._opened, self._found_pending, self._failed, self._deliver)
        Writer(self._path, self._settings, self._queue, self._call_on_loop, callbacks).run()

    def _call_on_loop(self, function: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no caller is left
            self._loop.call_soon_threadsafe(function, value)

    # ---- on the loop, called by the thread

    def _opened(self, state: RecoveredState) -> None:
        try:
            for hook in self.on_opened:
                hook(state)
        except Exception as error:  # the daemon must not go on: it could give out a pid again
            log.error("the state of the previous run could not be taken over", exception=traceback_text(error))
            self._failed(
                JournalUnavailable(f"the state in the journal at {self._path} cannot be taken over: {brief(error)}")
            )

    def _found_pending(self, tasks: list[AcceptedTask]) -> None:
        for hook in self.on_pending:
            self._guarded(hook, tasks)

    def _failed(self, error: LlmosError) -> None:
        for hook in self.on_failure:
            self._guarded(hook, error)

    def _deliver(self, answered: Sequence[Answered]) -> None:
        """Pass each outcome to its caller."""
        self._waiting -= sum(type(operation) is Accept for operation, _ in answered)
        for operation, outcome in answered:
            self._guarded(operation.answer, outcome)

    def _guarded(self, function: Callable[[Any], None], value: Any) -> None:
        try:
            function(value)
        except BaseException as error:
            log.error("an answer of the journal could not be taken", exception=traceback_text(error, whole=True))

    def _thread_ended(self, _: None) -> None:
        self._ended.set()
