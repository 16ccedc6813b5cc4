"""The journal's thread: writes one transaction after another, each with all requests that arrived during the last one.

So a single caller waits for one fsync, and many callers share one (group commit; Gray and Reuter, "Transaction
Processing", 1993, section 9.4.6). The journal starts the thread and feeds it. While the disk refuses writes, the thread
refuses new tasks, retains the ends of running tasks and tries again. It never drops an end while the daemon runs, and
no error ends it: an error that the disk did not cause costs the request or the work in which it happens.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import apsw
import structlog

from ipc.codec import encode
from ipc.errors import BackupFailed, JournalUnavailable, LlmosError, TooManyAttempts, brief, to_wire
from ipc.messages import Failed
from kernel.journal import histories, wal
from kernel.journal.backup import BackupJob
from kernel.journal.clock import PurgeClock
from kernel.journal.damage import JournalLocation, unusable
from kernel.journal.records import AcceptedTask, TaskEnd
from kernel.journal.requests import Accept, Answered, Copy, Finish, Operation, Persist, Read
from kernel.journal.settings import JournalSettings
from kernel.journal.store import CHECKPOINT, Store, open_store
from kernel.journal.suspects import RestartPlan
from kernel.journal.transactions import is_of_a_value, write_one_by_one, write_together
from kernel.lib import failpoints
from kernel.lib.failures import traceback_text

GROUP = 4096  # operations at which a transaction stops collecting more
RETRY = 1.0  # seconds between two attempts to write ends that the disk refused
# Seconds between two purges of old tasks: at most this and the setting `purge_every`, and not more than `keep` needs.
PURGE_EVERY, LEAST_PURGE = 60.0, 1.0
MARGIN = 64  # pages of the WAL beyond CHECKPOINT, for the transaction that exceeds it
RETRIED = (Finish, Persist)  # the operations that are tried again until they are written
PORTION = 500  # pending tasks passed to the loop in one call

log = structlog.get_logger("kernel.journal")


class WriterCallbacks(NamedTuple):
    """The callbacks of the writer, all of which run on the loop.

    Before any request is answered, `opened` gets the state that the daemon needs first, and then `pending` gets the
    tasks of previous runs, in portions. `failed` gets the error if the journal cannot be opened or cannot go on.
    `answers` gets the operations that are done, each with its outcome.
    """

    opened: Callable[[histories.RecoveredState], None]
    pending: Callable[[list[AcceptedTask]], None]
    failed: Callable[[LlmosError], None]
    answers: Callable[[Sequence[Answered]], None]


class Writer:
    """Owns the store.

    Takes lists of operations from `queue`, until a None ends it. `call_on_loop` runs a callback on the loop.
    """

    def __init__(
        self,
        path: Path,
        settings: JournalSettings,
        queue: SimpleQueue[list[Operation] | None],
        call_on_loop: Callable[[Callable[[Any], None], Any], None],
        callbacks: WriterCallbacks,
    ) -> None:
        self._path = path
        self._settings = settings
        self._queue = queue
        self._call_on_loop = call_on_loop
        self._callbacks = callbacks
        self._store: Store | None = None
        self._unwritten: list[Finish | Persist] = []
        self._to_withdraw: list[int] = []  # ids of tasks that were refused although the disk may have them
        self._wal_in_doubt = False  # pages of the WAL may be in the system's memory only, not on disk
        self._indexes_in_doubt = False  # SQLite found a damaged page, which may be one of an index
        self._reindexed = False  # since the last success
        self._write_error = ""  # why the last transaction failed; empty if it succeeded
        self._clock = PurgeClock(settings.keep)
        self._next_purge = time.monotonic() + self._purge_interval  # when NTP has had time to set the clock
        self._backup = BackupJob(lambda request: self._answer([request]))

    @property
    def _purge_interval(self) -> float:
        return min(PURGE_EVERY, self._settings.purge_every, max(self._settings.keep, LEAST_PURGE))

    def run(self) -> None:
        """Write until the queue ends. An unexpected error is reported by `failed`; it never escapes."""
        try:
            self._serve()
        except Exception as error:
            self._fail(error)

    def _serve(self) -> None:
        self._store = open_store(self._path, self._settings.sync)
        self._location = JournalLocation(self._path)
        self._start_run(self._store)
        if self._settings.sync == "full":
            try:
                wal.preallocate(self._path, CHECKPOINT + MARGIN)
            except Exception as error:
                log.error("the WAL could not be preallocated", exception=traceback_text(error, whole=True))
        going = True
        while going:
            operations, going = self._next_batch()
            self._execute(operations)
            self._continue_backup()
            self._purge()
        self._close()

    def _start_run(self, store: Store) -> None:
        """Start a run: fail the tasks that have reached the limit of crashes, and pass all others to the loop."""
        try:
            plan, state = self._begin_run(store)
        except apsw.CorruptError:
            store.reindex()
            plan, state = self._begin_run(store)
        self._call_on_loop(self._callbacks.opened, state)
        failpoints.point("journal.recover")
        portion: list[AcceptedTask] = []
        for task in store.pending():
            task.group = plan.held.get(task.id, 0)
            portion.append(task)
            if len(portion) == PORTION:
                self._call_on_loop(self._callbacks.pending, portion)
                portion = []
        self._call_on_loop(self._callbacks.pending, portion)

    def _begin_run(self, store: Store) -> tuple[RestartPlan, histories.RecoveredState]:
        now = time.time()
        with store.transaction():
            store.end_damaged()
            plan = store.begin_run(self._settings.attempts)
            exhausted = store.out_of_attempts(self._settings.attempts)
            store.finish([_too_many_attempts(*task, self._settings.attempts, now) for task in exhausted])
            histories.forget_ended(store)
            state = histories.recover_state(store, plan)
        if exhausted:
            log.error("failed tasks because the daemon died too often while they were running", tasks=len(exhausted))
        return plan, state

    def _next_batch(self) -> tuple[list[Operation], bool]:
        """The operations of the next transaction, and whether the queue goes on after them.

        Waits for the first operation, but at most until the next step of a backup, the next retry or the next purge.
        """
        if self._backup.in_progress:
            wait = 0.0
        elif self._unwritten or self._to_withdraw:
            wait = RETRY
        else:
            wait = max(self._next_purge - time.monotonic(), 0.0)
        operations: list[Operation] = []
        with contextlib.suppress(Empty):
            more = self._queue.get(timeout=wait) if wait else self._queue.get_nowait()
            while more is not None:
                operations += more
                if len(operations) >= GROUP:
                    return operations, True
                more = self._queue.get_nowait()
            return operations, False
        return operations, True

    def _execute(self, operations: Sequence[Operation]) -> None:
        """Execute `operations`, and answer them and the unwritten ends that are on disk now."""
        self._clock.look()  # whenever a task has ended: a jump just before is noticed
        try:
            answered = self._perform(operations)
        except Exception as error:  # a mistake of ours: each request gets an answer nevertheless
            log.error("the journal failed", exception=traceback_text(error, whole=True))
            answered = self._give_up(operations, brief(error))
        if answered:
            with contextlib.suppress(Exception):
                failpoints.point("journal.answer")
            self._answer(answered)

    def _perform(self, operations: Sequence[Operation]) -> list[Operation]:
        """Write `operations` and all unwritten ends in one transaction; then run the reads. Returns what to answer."""
        accepts: list[Accept] = []
        ends: list[Finish | Persist] = self._unwritten[:]
        others: list[Operation] = []
        for one in operations:
            if type(one) is Accept:
                accepts.append(one)
            elif isinstance(one, RETRIED):
                ends.append(one)
            else:
                others.append(one)
        if accepts and (lost := self._location.refusal()) is not None:
            for accept in accepts:
                accept.outcome = lost
            accepts = []
        late = len(self._unwritten)
        if self._write(accepts, ends) or (accepts and ends and self._write_without_accepts(accepts, ends)):
            self._unwritten = []
        else:
            why = self._write_error
            certain = not self._to_withdraw or self._write((), ())
            self._refuse(accepts, why, certain)
            self._refuse(ends[late:], why)
            self._unwritten = ends
            ends = []
        copies = []  # backups that started now, which are answered when they are done
        for one in others:
            if type(one) is Read:
                one.outcome = self._read(one)
            elif type(one) is Copy and self._start_backup(one):
                copies.append(one)
        answered = [*ends[:late], *operations]
        return [one for one in answered if one not in copies] if copies else answered

    def _give_up(self, operations: Sequence[Operation], why: str) -> list[Operation]:
        """Refuse the operations without an outcome, and retain the ends, which may not be on disk."""
        lacking = [one for one in operations if one.outcome is None]
        self._refuse(lacking, why, certain=False)
        self._to_withdraw += [one.task.id for one in lacking if type(one) is Accept and one.task.id]
        self._unwritten += [one for one in lacking if isinstance(one, RETRIED) and one not in self._unwritten]
        return list(operations)

    def _answer(self, operations: Sequence[Operation]) -> None:
        """Pass the present outcomes to the loop. An unwritten end may get another one before the loop takes this."""
        self._call_on_loop(self._callbacks.answers, [(one, one.outcome) for one in operations])

    def _write_without_accepts(self, accepts: Sequence[Accept], ends: Sequence[Finish | Persist]) -> bool:
        """Write the ends alone, which may still fit on a full disk, and refuse the new tasks. False if that fails."""
        if not self._write((), ends):
            return False
        self._write_error = self._write_error or "new tasks do not fit"
        self._refuse(accepts, self._write_error)
        return True

    def _write(self, accepts: Sequence[Accept], ends: Sequence[Finish | Persist]) -> bool:
        """Write one transaction. Returns whether it is on disk, apart from requests that it can never contain."""
        if not accepts and not ends and not self._to_withdraw:
            return True
        try:
            store = self._trusted_store()
            try:
                write_together(store, accepts, ends, self._to_withdraw)
            except Exception as error:
                if not is_of_a_value(error):
                    raise
                self._withdraw(accepts)
                write_one_by_one(store, accepts, ends, self._to_withdraw)
        except Exception as error:
            self._write_failed(error)
            if not isinstance(error, apsw.FullError):
                self._withdraw(accepts)
            return False
        self._to_withdraw = []
        self._reindexed = False
        if self._write_error:
            log.info("the journal can be written again")
            self._write_error = ""
        return True

    def _withdraw(self, accepts: Sequence[Accept]) -> None:
        """Delete `accepts` with the next transaction, because a failed commit may be on disk nevertheless."""
        self._to_withdraw += [one.task.id for one in accepts if one.task.id]

    def _trusted_store(self) -> Store:
        """The store, opened again after an error of the disk. Raises any error."""
        store = self._open_again()
        if self._wal_in_doubt:
            store.checkpoint()
            self._wal_in_doubt = False
        if self._indexes_in_doubt:
            self._indexes_in_doubt, self._reindexed = False, True
            store.reindex()
        return store

    def _write_failed(self, error: Exception) -> None:
        """Log the first failure of a series. After any error but a full disk, close the file: the next use opens it."""
        if not self._write_error:
            log.error("the journal cannot be written; new tasks are refused", error=str(error))
        self._write_error = str(error)
        self._indexes_in_doubt = isinstance(error, apsw.CorruptError) and not self._reindexed
        if self._store is not None and not isinstance(error, apsw.FullError):
            self._backup.abort(str(error))
            # After a disk error SQLite's own memory cannot be trusted, so the file is opened again. But the pages that
            # SQLite reads again may be in the system's memory only: after a failed fsync the system takes a page for
            # written (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). So the WAL is
            # moved to the main file first, which writes and syncs its pages again.
            self._wal_in_doubt = True
            with contextlib.suppress(Exception):
                self._store.close()
            self._store = None

    def _refuse(self, operations: Sequence[Operation], why: str, certain: bool = True) -> None:
        """Answer `operations` with the failure of the disk. If not `certain`, they may be on disk nevertheless."""
        hint = "make room on the disk of the state folder, and try again"
        if not certain:
            hint += " with the same key: if the daemon dies before then, the refused task may run nevertheless"
        for one in operations:
            one.outcome = JournalUnavailable(
                f"the journal cannot be written ({why}), and a task is accepted only once it is on disk; {hint}",
                retry_after=RETRY,
                certain=certain,
                cause=why,
            )

    def _read(self, one: Read) -> Any:
        try:
            return one.query(self._open_again())
        except (apsw.Error, OSError) as error:
            return JournalUnavailable(
                f"the journal cannot be read: {error}; check the disk of the state folder", retry_after=RETRY
            )
        except Exception as error:  # a mistake of ours, or a row that cannot be decoded: the other requests go on
            log.error("a read of the journal failed", exception=traceback_text(error, whole=True))
            return JournalUnavailable(f"the journal cannot answer: {brief(error)}", retry_after=RETRY)

    def _start_backup(self, one: Copy) -> bool:
        try:
            return self._backup.start(one, self._store)
        except Exception as error:  # such as a path that cannot be encoded
            one.outcome = BackupFailed(f"cannot write {one.path!r}: {brief(error)}")
            return False

    def _continue_backup(self) -> None:
        try:
            self._backup.step()
        except Exception as error:
            log.error("the backup failed", exception=traceback_text(error, whole=True))
            self._backup.abort(brief(error))

    def _purge(self) -> None:
        if time.monotonic() < self._next_purge:
            return
        # Set first: after an error the next purge is as far off, and the thread waits until then.
        self._next_purge = time.monotonic() + self._purge_interval
        try:
            store = self._trusted_store()
            with store.transaction():
                more = store.purge(self._clock.bound(), time.time())
            more = store.vacuum() or more
            if not more:
                store.shrink()
        except Exception as error:
            if is_of_a_value(error):
                log.error("ended tasks cannot be deleted", exception=traceback_text(error, whole=True))
            else:
                self._write_failed(error)
        else:
            self._reindexed = False
            if more:
                self._next_purge = 0.0  # purge again right after the requests that wait now

    def _open_again(self) -> Store:
        """The store, which an error has closed perhaps. Opens only the file of this run, never a new one."""
        store = self._store = self._store or Store(self._path, self._settings.sync, self._location.opened)
        return store

    def _close(self) -> None:
        self._backup.abort("the daemon stops")
        try:
            store = self._open_again()
            with store.transaction():
                store.end_run()
        except Exception as error:
            log.error("the journal could not be closed properly; the next start may count a crash", error=brief(error))
        if self._store is not None:
            try:
                self._store.checkpoint()
            except Exception as error:
                log.warning("the WAL could not be moved to the main file; the next run does it", error=brief(error))
            with contextlib.suppress(Exception):
                self._store.close()

    def _fail(self, error: Exception) -> None:
        """Report that the journal cannot go on, and refuse all requests until the daemon has stopped."""
        if isinstance(error, apsw.Error | OSError):
            error = unusable(self._path, error)
        elif not isinstance(error, LlmosError):
            log.error("the journal failed", exc_info=error)
            error = JournalUnavailable(f"the journal at {self._path} cannot be used: {error}")
        self._call_on_loop(self._callbacks.failed, error)
        while (operations := self._queue.get()) is not None:
            for one in operations:
                one.outcome = error
            self._answer(operations)


def _too_many_attempts(number: int, program: str, attempts: int, now: float) -> TaskEnd:
    error = TooManyAttempts(
        f"the daemon died {attempts} times while {program} was running; the task is not run again",
        attempts=attempts,
    )
    return TaskEnd(number, now, "failed", type(error).__name__, encode(Failed(0, to_wire(error))))
