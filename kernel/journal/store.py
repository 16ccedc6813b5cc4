"""The store: the SQLite file of the journal, and the statements that read and write it.

Only the journal's thread uses the store, because all its methods block on the disk. Callers group their writes in
`transaction`. Apart from migrations at the start, the store never commits by itself.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import structlog

from ipc.errors import LlmosError, StateTooNew
from kernel.journal import changes, faulty_vfs, repair, suspects
from kernel.journal.damage import check_in_place, set_aside, unusable
from kernel.journal.records import AcceptedTask, TaskEnd, TaskRow, check_exact, row_of, text_of
from kernel.journal.schema import MIGRATIONS
from kernel.lib import failpoints
from kernel.lib.private_files import check_private, open_private

CHECKPOINT = 1000  # pages of 4 KiB in the WAL at which SQLite moves them to the main file
LOG_LIMIT = 16 * 1024 * 1024  # bytes to which SQLite truncates the WAL after a checkpoint
BUSY = 5000  # milliseconds to wait for another program that has locked the file
CHUNK = 500  # rows in one statement
PURGE = 2000  # rows that one purge deletes at most
VACUUM = 2000  # pages that one vacuum frees at most: all commits wait meanwhile, and the WAL has to hold the pages

FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_NOFOLLOW
COMPANIONS = ("-wal", "-shm", "-journal")  # SQLite names these files after the main one, and follows links there

DAMAGE = (apsw.CorruptError, apsw.NotADBError)
# The columns of a `TaskRow`. A damaged row is shown, too: each value is cast, and `row_of` decodes the texts.
COLUMNS = (
    "id, CAST(program AS BLOB), CAST(owner AS BLOB), coalesce(CAST(submitted AS REAL), 0.0), "
    "coalesce(CAST(attempt AS INTEGER), 0), CAST(ended AS REAL), CAST(reason AS BLOB), CAST(error AS BLOB)"
)
MAX_ID = 1 << 62  # ids of tasks from here on are damage: no new task gets a higher one

log = structlog.get_logger("kernel.journal")


class Damaged(Exception):
    """The file is damaged, or is not a journal."""


class Store:
    """An open journal."""

    def __init__(self, path: Path, sync: str, known: os.stat_result | None = None) -> None:
        """Open the file at `path`, and create it. With `known`, open only this file: raise `OSError` for any other."""
        failpoints.point("journal.open")
        self._path = path
        opened = self._prepare_files(known)
        self._vfs = faulty_vfs.FaultyVFS() if failpoints.needs_shim() else None
        self.db = apsw.Connection(str(opened), FLAGS, vfs=faulty_vfs.NAME if self._vfs else None)
        self.db.set_busy_timeout(BUSY)
        self.db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # closing must not change a damaged file
        for pragma in (
            "auto_vacuum = INCREMENTAL",
            "journal_mode = WAL",
            f"synchronous = {sync.upper()}",
            f"wal_autocheckpoint = {CHECKPOINT}",
            f"journal_size_limit = {LOG_LIMIT}",
        ):
            self.db.execute(f"PRAGMA {pragma}")
        self._last_id: int | None = None  # the highest id so far; None until the first `accept`

    def _prepare_files(self, known: os.stat_result | None) -> Path:
        """Create the file, and refuse links at the places of all files that SQLite will open. Raises `OSError`.

        Returns the path without links among its folders: SQLite refuses these as well.
        """
        if known is None:
            os.close(open_private(self._path, os.O_RDWR | os.O_CREAT))
        else:
            check_in_place(self._path, known)
        for suffix in COMPANIONS:
            with contextlib.suppress(FileNotFoundError):
                companion = self._path.with_name(self._path.name + suffix)
                check_private(os.lstat(companion), companion)
        return self._path.parent.resolve() / self._path.name

    @property
    def version(self) -> int:
        return int(self._value("PRAGMA user_version"))

    def check(self) -> bool:
        """Run SQLite's quick check on the whole file. Returns whether all rows are sound. Raises `Damaged`."""
        found: list[Any] = [text for (text,) in self.db.execute(f"PRAGMA quick_check({repair.FINDINGS})")]
        if found != ["ok"] and not repair.concerns_rows(found):
            raise Damaged("; ".join(found[:3]))
        return found == ["ok"]

    def repair_types(self) -> None:
        """Repair the rows with values of a wrong type. Raises `Damaged` if that is impossible."""
        with self.transaction():
            self.finish(repair.repair_types(self.db))
        if not self.check():
            raise Damaged("rows with values of the wrong types cannot be repaired")

    def reindex(self) -> None:
        """Build all indexes again: if one lacks a row, SQLite takes each change of that row for damage to the file."""
        log.error("the journal has a damaged index; all indexes are built again")
        with self.transaction():
            self.db.execute("REINDEX")

    def end_damaged(self) -> None:
        """End the tasks whose rows are damaged, so that all others can run."""
        repair.repair_counters(self.db)
        self.finish(repair.damaged_tasks(self.db))

    def migrate(self) -> None:
        """Bring the tables to the version of this llmosd. Raises `StateTooNew`, or `Damaged` for an alien file."""
        version = self.version
        if version <= 0 and self._value("SELECT count(*) FROM sqlite_schema"):
            raise Damaged("it is a database of another program")
        if version > len(MIGRATIONS):
            raise StateTooNew(
                f"the journal has version {version}, and this llmosd knows only {len(MIGRATIONS)}; install the llmosd "
                "that wrote it, or choose another folder with --state",
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
        """Commit all writes of the `with` block, or none if the block raises. After a commit the writes are on disk.

        `single`: the block writes with one statement at most. SQLite makes that statement a transaction by itself,
        which saves two waits for the interpreter's lock.
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
    def fits_one_statement(tasks: Sequence[AcceptedTask]) -> bool:
        """Whether `accept` adds `tasks` with one statement."""
        return len(tasks) <= CHUNK and not any(task.pid for task in tasks)

    def accept(self, tasks: Sequence[AcceptedTask]) -> list[AcceptedTask | TaskRow | LlmosError]:
        """Add `tasks` in their order.

        The outcome of each is the task with its id, the row of an earlier task with the same key, or `KeyReused`.
        """
        if self._last_id is None:
            self._last_id = int(self._value(f"SELECT coalesce(max(id), 0) FROM tasks WHERE id < {MAX_ID}"))
        now, last = int(time.time() * 1000) << 20, self._last_id
        if now >= MAX_ID:  # the clock is wrong, and would use up the numbers
            now = 0
        outcomes: list[AcceptedTask | TaskRow | LlmosError] = []
        new: list[AcceptedTask] = []
        new_by_key: dict[tuple[str, str], AcceptedTask] = {}
        for task in tasks:
            if task.key is not None:
                twin = new_by_key.get((task.owner, task.key))
                if twin is not None:
                    outcomes.append(twin.as_row() if task.is_same_work(twin.call) else task.key_reused())
                    continue
                rows = self._with_key(task.owner, task.key)
                if not rows and task.former_owner:
                    rows = self._with_key(task.former_owner, task.key)
                if rows:
                    row, call = rows[0]
                    outcomes.append(row if task.is_same_work(call) else task.key_reused())
                    continue
                new_by_key[task.owner, task.key] = task
            task.id = last = now if now > last else last + 1
            new.append(task)
            outcomes.append(task)
        self._last_id = last
        for start in range(0, len(new), CHUNK):
            chunk = new[start : start + CHUNK]
            values: list[Any] = []
            for task in chunk:
                row = (task.id, task.program, task.owner, task.key, task.call, task.submitted)
                check_exact("a task", ("id", "program", "owner", "key", "call", "submitted"), row)
                values += row
            self.db.execute(_insert(len(chunk)), values)
        durable = [one for one in new if one.pid]
        if durable:
            self.apply(changes.PutProcess(one.pid, one.id, 0, one.program, one.version, True) for one in durable)
            self.apply(changes.HighestIds(pid=one.pid) for one in durable)
        return outcomes

    def withdraw(self, numbers: Sequence[int]) -> None:
        """Delete tasks that were refused because their commit failed: they may be on disk nevertheless."""
        for table, column in (("tasks", "id"), ("processes", "task")):
            self.db.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(number,) for number in numbers])

    def apply(self, rows: Iterable[changes.Change]) -> None:
        """Apply changes of durable processes, in their order."""
        changes.write(self.db, rows)

    def finish(self, ends: Sequence[TaskEnd]) -> None:
        """Write the ends of tasks. For a task that has ended already, the first end stays."""
        for start in range(0, len(ends), CHUNK):
            chunk = ends[start : start + CHUNK]
            values: list[Any] = []
            for end in chunk:
                row = (end.id, end.ended, end.reason, end.error, end.outcome)
                check_exact("the end of a task", ("id", "ended", "reason", "error", "outcome"), row)
                values += row
            self.db.execute(
                "UPDATE tasks SET ended = new.column2, reason = new.column3, error = new.column4, "
                f"outcome = new.column5 FROM (VALUES {','.join(['(?,?,?,?,?)'] * len(chunk))}) AS new "
                "WHERE tasks.id = new.column1 AND tasks.ended IS NULL",
                values,
            )

    def find(self, number: int) -> TaskRow | None:
        """The task with this id, if there is one."""
        return next((row for (row,) in self._rows("id = ?", (number,))), None)

    def history(self, limit: int, before: int | None) -> list[TaskRow]:
        """The last `limit` tasks with ids below `before`, newest first, without their outcomes."""
        return [row for row, _, _ in self.history_with_values(limit, before, 0)]

    def history_with_values(self, limit: int, before: int | None, most: int) -> Iterator[tuple[TaskRow, bytes, bytes]]:
        """The rows of `history`, each with the first `most` bytes of its call and of its outcome.

        A longer value is not read in full.
        """
        where, values = ("1", ()) if before is None else ("id < ?", (before,))
        # SQLite takes the length of a value from the head of its row, without its pages.
        short = ", ".join(f"CASE WHEN length({name}) <= {most:d} THEN {name} END" for name in ("call", "outcome"))
        query = f"SELECT {COLUMNS}, x'', {short}, outcome IS NULL FROM tasks WHERE {where} ORDER BY id DESC LIMIT ?"
        rows: Iterator[Any] = self.db.execute(query, (*values, limit))
        for *columns, call, outcome, has_not_ended in rows:
            row = row_of(columns)
            yield (
                row,
                self._beginning(row.id, "call", most) if call is None else call,
                b"" if has_not_ended else self._beginning(row.id, "outcome", most) if outcome is None else outcome,
            )

    def _beginning(self, number: int, column: str, most: int) -> bytes:
        """The first `most` bytes of a value of task `number`."""
        if not most:
            return b""
        with contextlib.closing(self.db.blob_open("main", "tasks", column, number, False)) as blob:
            return bytes(blob.read(most))

    def begin_run(self, attempts: int) -> suspects.RestartPlan:
        """Begin a run of the daemon: count a crash of the previous run, and choose the tasks that restart at once."""
        return suspects.begin_run(self.db, attempts)

    def end_run(self) -> None:
        """Record that the daemon stops in order, so that the next run counts no crashes."""
        self.db.execute("UPDATE stops SET clean = 1")

    def out_of_attempts(self, attempts: int) -> list[tuple[int, str]]:
        """Ids and programs of the pending tasks that have reached `attempts` crashes."""
        return suspects.out_of_attempts(self.db, attempts)

    def pending(self) -> Iterator[AcceptedTask]:
        """All tasks that have not ended, in the order of acceptance."""
        # The plus stops SQLite from using the index on `parent`, which would scan all first processes for each task.
        query = (
            "SELECT CAST(tasks.program AS BLOB), CAST(owner AS BLOB), CAST(key AS BLOB), call, submitted, tasks.id, "
            "attempt, coalesce(pid, 0), CAST(version AS BLOB) "
            "FROM tasks LEFT JOIN processes ON processes.task = tasks.id AND +parent = 0 AND durable "
            "WHERE ended IS NULL ORDER BY tasks.id"
        )
        rows: Iterator[Any] = self.db.execute(query)
        for program, owner, key, call, submitted, number, attempt, pid, version in rows:
            texts = text_of(program), text_of(owner), None if key is None else text_of(key)
            yield AcceptedTask(*texts, call, submitted, number, attempt, pid, text_of(version))

    def purge(self, before: float, now: float = math.inf) -> bool:
        """Delete up to `PURGE` tasks that ended before `before`, in seconds since the epoch. True: more may be left.

        Up to `PURGE` tasks that ended after `now`, because the clock was wrong, count as ended now.
        """
        failpoints.point("journal.purge")
        self.db.execute(
            "UPDATE tasks SET ended = ?1 "
            "WHERE id IN (SELECT id FROM tasks WHERE ended > ?1 AND ended IS NOT NULL LIMIT ?2)",
            (now, PURGE),
        )
        self.db.execute(
            "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE ended < ? AND ended IS NOT NULL LIMIT ?)",
            (before, PURGE),
        )
        return bool(self.db.changes() == PURGE)

    def vacuum(self) -> bool:
        """Free up to `VACUUM` unused pages; the next checkpoint shortens the file. True if more pages are unused."""
        failpoints.point("journal.vacuum")
        before = self._value("PRAGMA freelist_count")
        for _ in self.db.execute(f"PRAGMA incremental_vacuum({VACUUM})"):
            pass
        return bool(0 < self._value("PRAGMA freelist_count") < before)

    def shrink(self) -> None:
        """Checkpoint the WAL if that shortens the main file: the next checkpoint by a write may be far off."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return  # the file was moved or removed; the connection goes on writing to it
        if size > self._value("PRAGMA page_count") * self._value("PRAGMA page_size"):
            for _ in self.db.execute("PRAGMA wal_checkpoint(PASSIVE)"):
                pass

    def checkpoint(self) -> None:
        """Move the whole WAL to the main file. Raises `BusyError` at once if another program reads the journal."""
        failpoints.point("journal.checkpoint")
        self.db.set_busy_timeout(0)
        try:
            (busy, *_), *_ = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self.db.set_busy_timeout(BUSY)
        if busy:
            raise apsw.BusyError("another program reads or writes the journal; end that program")

    def close(self) -> None:
        failpoints.point("journal.close")
        self.db.close()

    def _with_key(self, owner: str, key: str) -> list[tuple[Any, ...]]:
        """The task with this key, and its call; empty if there is none."""
        return list(self._rows("owner = ? AND key = ?", (owner, key), ", coalesce(call, x'')"))

    def _rows(self, where: str, values: tuple[Any, ...], more: str = "") -> Iterator[tuple[Any, ...]]:
        query = f"SELECT {COLUMNS}, coalesce(CAST(outcome AS BLOB), x'') {more} FROM tasks WHERE {where}"
        rows: Iterator[Any] = self.db.execute(query, values)
        for row in rows:
            yield row_of(row[:9]), *row[9:]

    def _value(self, query: str) -> Any:
        return next(iter(self.db.execute(query)))[0]


def open_store(path: Path, sync: str) -> Store:
    """Open the journal at `path` and migrate it to this version. A damaged file is renamed, and a new one is created.

    Raises `StateTooNew`, and `JournalUnavailable` if the file cannot be used.
    """
    try:
        try:
            return _open_checked(path, sync)
        except (Damaged, *DAMAGE) as error:
            aside = set_aside(path)
            log.error(
                "the journal is damaged; it was set aside, and a new journal is created",
                aside=str(aside),
                error=str(error),
            )
            return _open_checked(path, sync)
    except (apsw.Error, OSError) as error:
        raise unusable(path, error) from None


def _open_checked(path: Path, sync: str) -> Store:
    store = Store(path, sync)
    try:
        sound = store.check()
        store.migrate()
        if not sound:
            store.repair_types()
    except BaseException:
        store.close()
        raise
    return store


@functools.lru_cache(CHUNK)
def _insert(rows: int) -> str:
    """A single statement for all rows, so that the thread waits for the interpreter's lock once, not once a row."""
    values = ",".join(["(?,?,?,?,?,?,1,0)"] * rows)
    return f"INSERT INTO tasks (id, program, owner, key, call, submitted, attempt, crashes) VALUES {values}"
