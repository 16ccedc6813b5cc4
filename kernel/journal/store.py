"""The store: the SQLite file of the journal, and the statements on it.

Used by the journal's thread alone, as all here blocks on the disk. It commits nothing by itself but what it does when
it opens: callers group their writes in `transaction`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import structlog

from ipc.errors import LlmosError, StateTooNew
from kernel.journal import changes, faulty_vfs
from kernel.journal.damage import set_aside, unusable
from kernel.journal.records import Accepted, TaskEnd, TaskRow
from kernel.journal.schema import MIGRATIONS
from kernel.lib import failpoints

CHECKPOINT = 1000  # pages of 4 KiB in the log at which they are moved to the main file
LOG_LIMIT = 16 * 1024 * 1024  # bytes that the log may keep on the disk once it was moved
BUSY = 5000  # milliseconds to wait for a program that looks into the file
CHUNK = 500  # rows of one statement
PURGE = 2000  # rows that one purge deletes
VACUUM = 2000  # pages that one vacuum gives back: all commits wait for it, and the log has to hold them

DAMAGE = (apsw.CorruptError, apsw.NotADBError)
COLUMNS = "id, program, owner, submitted, attempt, ended, coalesce(reason, ''), coalesce(error, '')"

log = structlog.get_logger("kernel.journal")


class Damaged(Exception):
    """The file is no journal any more."""


class Store:
    """An open journal."""

    def __init__(self, path: Path, sync: str) -> None:
        failpoints.point("journal.open")
        self._path = path
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._disk = faulty_vfs.Disk() if failpoints.on_disk() else None
        self.db = apsw.Connection(str(path), vfs=faulty_vfs.NAME if self._disk else None)
        self.db.set_busy_timeout(BUSY)
        self.db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # a damaged file is closed as it was found
        for pragma in (
            "auto_vacuum = INCREMENTAL",
            "journal_mode = WAL",
            f"synchronous = {sync.upper()}",
            f"wal_autocheckpoint = {CHECKPOINT}",
            f"journal_size_limit = {LOG_LIMIT}",
        ):
            self.db.execute(f"PRAGMA {pragma}")
        self._last: int | None = None  # the highest id, once it is asked for

    @property
    def version(self) -> int:
        return int(self._value("PRAGMA user_version"))

    def check(self) -> None:
        """A quick look at the whole file. Raises `Damaged`."""
        found = self._value("PRAGMA quick_check(1)")
        if found != "ok":
            raise Damaged(found)

    def migrate(self) -> None:
        """Bring the tables to this version. Raises `StateTooNew`, and `Damaged` if they are not ours."""
        version = self.version
        if version <= 0 and self._value("SELECT count(*) FROM sqlite_schema"):
            raise Damaged("it is a database of another program")
        if version > len(MIGRATIONS):
            raise StateTooNew(
                f"the journal has version {version}, this llmosd knows {len(MIGRATIONS)}; install the llmosd that "
                "wrote it, or choose another folder with --state",
                found=version,
                known=len(MIGRATIONS),
            )
        for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
            with self.transaction():
                self.db.execute(step)
                self.db.execute(f"PRAGMA user_version = {number}")
                failpoints.point("journal.migrate")

    @contextlib.contextmanager
    def transaction(self, *, single: bool = False) -> Iterator[None]:
        """All or nothing of what is done inside, on the disk at its end.

        With `single` it changes something by one statement at most. That is a transaction by itself, and spares two
        waits for the interpreter's lock.
        """
        failpoints.point("journal.begin")
        if single:
            failpoints.point("journal.commit")
            yield
            failpoints.point("journal.committed")
            return
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            failpoints.point("journal.commit")
            self.db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(apsw.Error):
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
            raise
        failpoints.point("journal.committed")

    # ---- tasks

    @staticmethod
    def at_once(tasks: Sequence[Accepted]) -> bool:
        """Whether one statement is enough for `accept` to add `tasks`."""
        return len(tasks) <= CHUNK and not any(task.pid for task in tasks)

    def accept(self, tasks: Sequence[Accepted]) -> list[Accepted | TaskRow | LlmosError]:
        """Add `tasks`, in their order: each with its id, or the task of the same key, or why that is another one."""
        if self._last is None:
            self._last = int(self._value("SELECT coalesce(max(id), 0) FROM tasks"))
        now, last = int(time.time() * 1000) << 20, self._last
        outcomes: list[Accepted | TaskRow | LlmosError] = []
        new: list[Accepted] = []
        own_keys: dict[tuple[str, str], Accepted] = {}
        for task in tasks:
            if task.key is not None:
                twin = own_keys.get((task.owner, task.key))
                if twin is not None:
                    outcomes.append(twin.kept() if task.is_same_work(twin.call) else task.reused())
                    continue
                rows = list(self._rows("owner = ? AND key = ?", (task.owner, task.key), ", call"))
                if rows:
                    kept, call = rows[0]
                    outcomes.append(kept if task.is_same_work(call) else task.reused())
                    continue
                own_keys[task.owner, task.key] = task
            task.id = last = now if now > last else last + 1
            new.append(task)
            outcomes.append(task)
        self._last = last
        for start in range(0, len(new), CHUNK):
            chunk = new[start : start + CHUNK]
            values: list[Any] = []
            for task in chunk:
                values += (task.id, task.program, task.owner, task.key, task.call, task.submitted)
            self.db.execute(_insert(len(chunk)), values)
        durable = [one for one in new if one.pid]
        if durable:
            self.keep(changes.PutProcess(one.pid, one.id, 0, one.program, one.version, True) for one in durable)
            self.keep(changes.HighestIds(pid=one.pid) for one in durable)
        return outcomes

    def withdraw(self, numbers: Sequence[int]) -> None:
        """Forget tasks that were refused as their commit failed: the disk may have taken them all the same."""
        for table, column in (("tasks", "id"), ("processes", "task")):
            self.db.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(number,) for number in numbers])

    def keep(self, wanted: Iterable[changes.Change]) -> None:
        """Make changes for durable processes, in their order."""
        changes.write(self.db, wanted)

    def finish(self, ends: Sequence[TaskEnd]) -> None:
        """Write down how tasks ended; the first end of a task is the one that counts."""
        for start in range(0, len(ends), CHUNK):
            chunk = ends[start : start + CHUNK]
            values: list[Any] = []
            for end in chunk:
                values += (end.id, end.ended, end.reason, end.error, end.outcome)
            self.db.execute(
                "UPDATE tasks SET ended = new.column2, reason = new.column3, error = new.column4, "
                f"outcome = new.column5 FROM (VALUES {','.join(['(?,?,?,?,?)'] * len(chunk))}) AS new "
                "WHERE tasks.id = new.column1 AND tasks.ended IS NULL",
                values,
            )

    def find(self, number: int) -> TaskRow | None:
        """The task of this id."""
        return next((kept for (kept,) in self._rows("id = ?", (number,))), None)

    def history(self, limit: int, before: int | None) -> list[TaskRow]:
        """The last tasks, newest first, without their outcomes."""
        where = "1" if before is None else "id < ?"
        rows = self.db.execute(
            f"SELECT {COLUMNS}, x'' FROM tasks WHERE {where} ORDER BY id DESC LIMIT {limit:d}",
            () if before is None else (before,),
        )
        return [TaskRow(*row) for row in rows]

    def begin_life(self, attempts: int) -> None:
        """Begin a run of the daemon: if the last one crashed, count a crash for each task that has not ended.

        Each of these tasks is tried once more, unless it has had `attempts` crashes.
        """
        crash = int(not self._value("SELECT clean FROM stops"))
        self.db.execute(
            "UPDATE tasks SET attempt = attempt + (crashes + ?1 < ?2), crashes = crashes + ?1 WHERE ended IS NULL",
            (crash, attempts),
        )
        self.db.execute("UPDATE stops SET clean = 0")

    def end_life(self) -> None:
        """The daemon stops in order: who has not ended is not to blame."""
        self.db.execute("UPDATE stops SET clean = 1")

    def worn_out(self, attempts: int) -> list[tuple[int, str]]:
        """Ids and programs of the tasks over which the daemon has died so often."""
        query = "SELECT id, program FROM tasks WHERE ended IS NULL AND crashes >= ?"
        return [(int(row[0]), str(row[1])) for row in self.db.execute(query, (attempts,))]

    def pending(self) -> Iterator[Accepted]:
        """All tasks that have not ended, in the order of their acceptance."""
        # The plus keeps SQLite from looking through all first processes for each task.
        query = (
            "SELECT tasks.program, owner, key, call, submitted, tasks.id, attempt, coalesce(pid, 0), "
            "coalesce(version, '') "
            "FROM tasks LEFT JOIN processes ON processes.task = tasks.id AND +parent = 0 AND durable "
            "WHERE ended IS NULL ORDER BY tasks.id"
        )
        for row in self.db.execute(query):
            yield Accepted(*row)

    def purge(self, before: float) -> bool:
        """Forget some of the tasks that ended before then, and give their space back. Whether there may be more."""
        failpoints.point("journal.purge")
        self.db.execute(
            "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE ended < ? AND ended IS NOT NULL LIMIT ?)",
            (before, PURGE),
        )
        return bool(self.db.changes() == PURGE)

    def vacuum(self) -> bool:
        """Give some free pages back to the file system, once the log is moved. Whether there are more."""
        failpoints.point("journal.vacuum")
        before = self._value("PRAGMA freelist_count")
        for _ in self.db.execute(f"PRAGMA incremental_vacuum({VACUUM})"):
            pass
        return bool(0 < self._value("PRAGMA freelist_count") < before)

    def shorten(self) -> None:
        """Move the log if the main file is longer than what it will hold then: nobody may write for long."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return  # it was moved, and is written where it is
        if size > self._value("PRAGMA page_count") * self._value("PRAGMA page_size"):
            for _ in self.db.execute("PRAGMA wal_checkpoint(PASSIVE)"):
                pass

    def checkpoint(self) -> None:
        """Move the whole log to the main file."""
        failpoints.point("journal.checkpoint")
        for _ in self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)"):
            pass

    def close(self) -> None:
        failpoints.point("journal.close")
        self.db.close()

    def _rows(self, where: str, values: tuple[Any, ...], more: str = "") -> Iterator[tuple[Any, ...]]:
        for row in self.db.execute(f"SELECT {COLUMNS}, coalesce(outcome, x'') {more} FROM tasks WHERE {where}", values):
            yield TaskRow(*row[:9]), *row[9:]

    def _value(self, query: str) -> Any:
        return next(iter(self.db.execute(query)))[0]


def open_store(path: Path, sync: str) -> Store:
    """The journal at `path`, whole and of this version; if it is damaged it is kept aside, and a new one begun.

    Raises `StateTooNew`, and `JournalUnavailable` if the file cannot be used.
    """
    try:
        try:
            return _opened(path, sync)
        except (Damaged, *DAMAGE) as error:
            aside = set_aside(path)
            log.error(
                "the journal is damaged; it is kept aside, and a new one begun", kept=str(aside), error=str(error)
            )
            return _opened(path, sync)
    except (apsw.Error, OSError) as error:
        raise unusable(path, error) from None


def _opened(path: Path, sync: str) -> Store:
    store = Store(path, sync)
    try:
        store.check()
        store.migrate()
    except BaseException:
        store.close()
        raise
    return store


@functools.lru_cache(CHUNK)
def _insert(rows: int) -> str:
    """One statement for all: the interpreter's lock is given up and waited for once, and not with each row."""
    values = ",".join(["(?,?,?,?,?,?,1,0)"] * rows)
    return f"INSERT INTO tasks (id, program, owner, key, call, submitted, attempt, crashes) VALUES {values}"
