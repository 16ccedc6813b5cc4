"""The journal's thread: one transaction after another, each with all that was asked for while the last one was written.

So a caller alone waits for one fsync, and many share one (group commit; Gray and Reuter, "Transaction Processing",
1993, section 9.4.6). Started and fed by the journal. While the disk takes nothing it refuses new tasks, keeps the ends
of those that run, and tries again.
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
from ipc.errors import JournalUnavailable, LlmosError, TooManyAttempts, to_wire
from ipc.messages import Failed
from kernel.journal import histories, wal
from kernel.journal.backup import BackupJob
from kernel.journal.damage import JournalLocation, unusable
from kernel.journal.records import Accepted, TaskEnd
from kernel.journal.requests import Accept, Copy, Finish, Operation, Persist, Read
from kernel.journal.settings import JournalSettings
from kernel.journal.store import CHECKPOINT, Store, open_store
from kernel.lib import failpoints

GROUP = 4096  # operations of one transaction
RETRY = 1.0  # seconds between two attempts to write ends that the disk did not take
PURGE_EVERY = 60.0  # seconds between two looks for tasks that were kept for long enough, or as long as they are kept
LEAST_PURGE = 1.0  # but not less
MARGIN = 64  # pages beyond those at which the log is moved: of the transaction that reaches them
ENDS = (Finish, Persist)  # what is tried again until it is written
PORTION = 500  # pending tasks handed to the loop at once

log = structlog.get_logger("kernel.journal")


class WriterCallbacks(NamedTuple):
    """The callbacks of the writer.

    `opening` gets what the journal knows of durable processes; then `pending` gets the tasks of earlier runs, in
    portions, before anything is answered. `failure` gets the reason why the journal cannot be opened or cannot go on,
    `answers` what was done.
    """

    opening: Callable[[histories.Opening], None]
    pending: Callable[[list[Accepted]], None]
    failure: Callable[[LlmosError], None]
    answers: Callable[[Sequence[Operation]], None]


class Writer:
    """Owns the store.

    Operations come by `queue`, in lists; None is the end. The writer makes its callbacks and gives its answers on the
    loop, by way of `tell`.
    """

    def __init__(
        self,
        path: Path,
        settings: JournalSettings,
        queue: SimpleQueue[list[Operation] | None],
        tell: Callable[[Callable[[Any], None], Any], None],
        told: WriterCallbacks,
    ) -> None:
        self._path = path
        self._settings = settings
        self._queue = queue
        self._tell = tell
        self._told = told
        self._store: Store | None = None
        self._unwritten: list[Finish | Persist] = []
        self._void: list[int] = []  # ids of tasks that were refused, though the disk may have them all the same
        self._doubtful = False  # what is read from the log may not be on the disk
        self._trouble = ""  # why the last transaction failed; empty if it did not
        self._next_purge = 0.0
        self._copies = BackupJob(lambda one: tell(told.answers, [one]))

    def run(self) -> None:
        """The life of the thread."""
        try:
            self._live()
        except Exception as error:
            self._broken(error)

    def _live(self) -> None:
        self._store = open_store(self._path, self._settings.sync)
        self._place = JournalLocation(self._path)
        self._begin(self._store)
        if self._settings.sync == "full":
            wal.extend(self._path, CHECKPOINT + MARGIN)
        going = True
        while going:
            operations, going = self._gather()
            self._do(operations)
            self._copies.step()
            self._purge()
        self._end()

    def _begin(self, store: Store) -> None:
        """Start a life: fail what killed too many daemons, hand the rest to the loop."""
        now = time.time()
        with store.transaction():
            store.begin_life(self._settings.attempts)
            worn_out = store.worn_out(self._settings.attempts)
            store.finish([_given_up(number, program, self._settings.attempts, now) for number, program in worn_out])
            histories.forget_ended(store)
            opening = histories.opening(store)
        if worn_out:
            log.error("tasks are given up: the daemon died over each of them too often", tasks=len(worn_out))
        self._tell(self._told.opening, opening)
        failpoints.point("journal.recover")
        portion: list[Accepted] = []
        for task in store.pending():
            portion.append(task)
            if len(portion) == PORTION:
                self._tell(self._told.pending, portion)
                portion = []
        self._tell(self._told.pending, portion)

    def _gather(self) -> tuple[list[Operation], bool]:
        """What to do in the next transaction, and whether there will be another. Waits for the first."""
        operations: list[Operation] = []
        if self._copies.under_way:
            return self._gathered(operations, 0.0)
        wait: float = RETRY if self._unwritten or self._void else max(self._next_purge - time.monotonic(), 0.0)
        return self._gathered(operations, wait)

    def _gathered(self, operations: list[Operation], wait: float) -> tuple[list[Operation], bool]:
        with contextlib.suppress(Empty):
            more = self._queue.get(timeout=wait) if wait else self._queue.get_nowait()
            while more is not None:
                operations += more
                if len(operations) >= GROUP:
                    return operations, True
                more = self._queue.get_nowait()
            return operations, False
        return operations, True

    def _do(self, operations: Sequence[Operation]) -> None:
        accepts: list[Accept] = []
        ends: list[Finish | Persist] = self._unwritten[:]
        others: list[Operation] = []
        for one in operations:
            if type(one) is Accept:
                accepts.append(one)
            elif isinstance(one, ENDS):
                ends.append(one)
            else:
                others.append(one)
        if accepts and (lost := self._place.refusal()) is not None:
            for accept in accepts:
                accept.outcome = lost
            accepts = []
        late = len(self._unwritten)
        if self._write(accepts, ends) or (accepts and ends and self._only_ends(accepts, ends)):
            self._unwritten = []
        else:
            why = self._trouble
            certain = not self._void or self._write((), ())
            self._refuse(accepts, why, certain)
            self._refuse(ends[late:], why)
            self._unwritten = ends
            ends = []
        begun = []  # copies, which are answered when they are made
        for one in others:
            if type(one) is Read:
                one.outcome = self._read(one)
            elif type(one) is Copy and self._copies.begin(one, self._store):
                begun.append(one)
        answered = [*ends[:late], *operations]
        if begun:
            answered = [one for one in answered if one not in begun]
        if answered:
            failpoints.point("journal.answer")
            self._tell(self._told.answers, answered)

    def _only_ends(self, accepts: Sequence[Accept], ends: Sequence[Finish | Persist]) -> bool:
        """Ends may still fit where new tasks do not."""
        if not self._write((), ends):
            return False
        self._trouble = self._trouble or "new tasks do not fit"
        self._refuse(accepts, self._trouble)
        return True

    def _write(self, accepts: Sequence[Accept], ends: Sequence[Finish | Persist]) -> bool:
        """One transaction; whether it is on the disk."""
        if not accepts and not ends and not self._void:
            return True
        try:
            store = self._store = self._store or Store(self._path, self._settings.sync)
            if self._doubtful:
                store.checkpoint()
                self._doubtful = False
            tasks = [one.task for one in accepts]
            with store.transaction(single=not ends and not self._void and store.at_once(tasks)):
                if self._void:
                    store.withdraw(self._void)
                outcomes = store.accept(tasks)
                store.keep(change for one in ends if type(one) is Persist for change in one.changes)
                store.finish([one.end for one in ends if type(one) is Finish])
        except (apsw.Error, OSError) as error:
            self._failed(error)
            if not isinstance(error, apsw.FullError):
                self._void += [one.task.id for one in accepts if one.task.id]
            return False
        self._void = []
        for accept, outcome in zip(accepts, outcomes, strict=True):
            accept.outcome = outcome
        for end in ends:
            end.outcome = None
        if self._trouble:
            log.info("the journal can be written again")
            self._trouble = ""
        return True

    def _failed(self, error: Exception) -> None:
        if not self._trouble:
            log.error("the journal cannot be written; new tasks are refused", error=str(error))
        self._trouble = str(error)
        if self._store is not None and not isinstance(error, apsw.FullError):
            self._copies.give_up(str(error))
            # After an error of the disk only what is read anew from there counts. That, too, may lie in the memory of
            # the system alone: who could not write a page takes it for written the next time (Rebello et al., "Can
            # Applications Recover from fsync Failures?", USENIX ATC 2020). So it is moved to the main file first.
            self._doubtful = True
            with contextlib.suppress(apsw.Error, OSError):
                self._store.close()
            self._store = None

    def _refuse(self, operations: Sequence[Operation], why: str, certain: bool = True) -> None:
        """Answer that the disk takes nothing. Unless `certain`, it may have what it said that it did not take."""
        hint = "make room on the disk of the state folder, and try again"
        if not certain:
            hint += "; with the same key, since if the daemon dies before that the task may begin all the same"
        for one in operations:
            one.outcome = JournalUnavailable(
                f"the journal cannot be written ({why}), and what is not on disk is not accepted; {hint}",
                retry_after=RETRY,
                certain=certain,
            )

    def _read(self, one: Read) -> Any:
        try:
            self._store = self._store or Store(self._path, self._settings.sync)
            return one.query(self._store)
        except (apsw.Error, OSError) as error:
            return JournalUnavailable(f"the journal cannot be read: {error}", retry_after=RETRY)

    def _purge(self) -> None:
        if self._store is None or time.monotonic() < self._next_purge:
            return
        self._next_purge = time.monotonic() + min(PURGE_EVERY, max(self._settings.keep, LEAST_PURGE))
        try:
            with self._store.transaction():
                more = self._store.purge(time.time() - self._settings.keep)
            more = self._store.vacuum() or more
            if not more:
                self._store.shorten()
        except (apsw.Error, OSError) as error:
            self._failed(error)
        else:
            if more:
                self._next_purge = 0.0  # after what waits by now

    def _end(self) -> None:
        self._copies.give_up("the daemon stops")
        if self._store is not None:
            try:
                with self._store.transaction():
                    self._store.end_life()
                self._store.checkpoint()
                self._store.close()
            except (apsw.Error, OSError) as error:
                log.error("the journal could not be closed in order", error=str(error))

    def _broken(self, error: Exception) -> None:
        """The journal cannot go on: say so, and refuse all that is asked for until the daemon has stopped."""
        if isinstance(error, apsw.Error | OSError):
            error = unusable(self._path, error)
        elif not isinstance(error, LlmosError):
            log.error("the journal failed", exc_info=error)
            error = JournalUnavailable(f"the journal at {self._path} cannot be used: {error}")
        self._tell(self._told.failure, error)
        while (operations := self._queue.get()) is not None:
            for one in operations:
                one.outcome = error
            self._tell(self._told.answers, operations)


def _given_up(number: int, program: str, attempts: int, now: float) -> TaskEnd:
    error = TooManyAttempts(
        f"{program} was begun {attempts} times, and the daemon died each time; it is not tried again", attempts=attempts
    )
    return TaskEnd(number, now, "failed", type(error).__name__, encode(Failed(0, to_wire(error))))
