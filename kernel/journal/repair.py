"""Finds damaged rows in a sound file, and repairs them so that each costs only its own task.

The store calls it when it opens the file, and the writer at the start of a run, on the journal's thread. A value of the
wrong type, a text that is not UTF-8 or a number out of range ends its task as failed with `HistoryDamaged`; the row
stays in the history. Each repair is logged. It never touches a row that is sound, and never guesses a lost value of a
task that is to run.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from typing import Any

import apsw
import structlog

from ipc.codec import encode
from ipc.errors import HistoryDamaged, to_wire
from ipc.messages import Failed
from kernel.journal.changes import PROCESS_TABLES
from kernel.journal.records import TaskEnd

# What SQLite's quick check reports of a row whose values do not fit its table. All else concerns the file itself.
OF_A_ROW = re.compile(r"(non-\w+|NULL) value in \w+\.\w+")
FINDINGS = 1000  # damaged rows beyond which the whole file counts as damaged

MAX_PID = 1 << 52  # also of other small numbers: far above all that a daemon counts, and far from an overflow
MAX_NUMBER = 1 << 61  # of message ids and of versions of regions
GAP = 1 << 33  # numbers left out where the last one is lost: more than a run gives out, or reserves
MOST_LATE = 100

# The value of a column whose own value has the wrong type.
NEUTRAL = {"INTEGER": "0", "TEXT": "''", "REAL": "0.0", "BLOB": "x''"}

log = structlog.get_logger("kernel.journal")


def concerns_rows(findings: list[str]) -> bool:
    """Whether all findings of a quick check concern values of rows, so that the file itself is sound."""
    return len(findings) < FINDINGS and all(map(OF_A_ROW.fullmatch, findings))


def end_as_damaged(task: int, why: str) -> TaskEnd:
    """The end of a task that cannot run again because its rows are damaged."""
    error = HistoryDamaged(f"the journal's rows of this task are damaged: {why}; submit the task again")
    return TaskEnd(task, time.time(), "failed", HistoryDamaged.__name__, encode(Failed(0, to_wire(error))))


# ---- values of the wrong type, which the quick check of the file has reported


def repair_types(db: apsw.Connection) -> list[TaskEnd]:
    """Replace each value that has not the type of its column. Returns the ends of the tasks that cannot run any more.

    Rows of processes are deleted: their task has ended then, and its other rows are deleted, too.
    """
    with contextlib.suppress(apsw.ConstraintError):
        db.execute("REINDEX")  # the indexes may have the former values, and SQLite would refuse to change the rows
    damaged = dict.fromkeys(_repair_tasks(db), "a value has the wrong type")
    for table in ("processes", *PROCESS_TABLES):
        wrong = _wrong_type(db, table)
        query = f"SELECT task FROM processes WHERE pid IN (SELECT pid FROM {table} WHERE {wrong})"
        tasks = _column(db, f"{query} AND typeof(task) = 'integer'")
        damaged.update(dict.fromkeys(tasks, f"a value in the table {table} has the wrong type"))
        if table == "processes":  # a process whose task is lost leads to it by its program
            count = _neutralise(db, table, f"UPDATE OR REPLACE {table}", wrong)
        else:
            db.execute(f"DELETE FROM {table} WHERE {wrong}")
            count = db.changes()
        if count:
            log.error("rows of the journal are damaged", table=table, rows=count, tasks=_ids(tasks))
    wrong = _wrong_type(db, "regions")
    for name, owner in list(
        db.execute(f"SELECT hex(CAST(name AS BLOB)), hex(CAST(owner AS BLOB)) FROM regions WHERE {wrong}")
    ):
        log.error("a durable region is damaged and was deleted", name=_unhex(name), owner=_unhex(owner))
    db.execute(f"DELETE FROM regions WHERE {wrong}")
    repair_counters(db)
    return [end_as_damaged(task, why) for task, why in damaged.items()]


def _repair_tasks(db: apsw.Connection) -> list[int]:
    """Repair the rows of tasks. Returns those that have not ended."""
    wrong = _wrong_type(db, "tasks")
    numbers = _column(db, f"SELECT id FROM tasks WHERE {wrong}")
    if not numbers:
        return []
    ended = "typeof(ended) <> 'null' AND typeof(ended) <> 'real'"
    db.execute(f"UPDATE tasks SET ended = ?, {_neutral_values(db, 'tasks', 'ended')} WHERE {ended}", (time.time(),))
    _neutralise(db, "tasks", "UPDATE tasks", wrong)
    log.error("rows of the journal are damaged", table="tasks", rows=len(numbers), tasks=_ids(numbers))
    return numbers


def _neutralise(db: apsw.Connection, table: str, update: str, wrong: str) -> int:
    db.execute(f"{update} SET {_neutral_values(db, table)} WHERE {wrong}")
    return db.changes()


def _neutral_values(db: apsw.Connection, table: str, *but: str) -> str:
    """The assignments that give each column of the wrong type a value of the right type."""
    return ", ".join(
        f"{name} = CASE WHEN {wrong} THEN {'NULL' if nullable else NEUTRAL[kind]} ELSE {name} END"
        for name, kind, nullable, wrong in _columns(db, table)
        if name not in but
    )


def _wrong_type(db: apsw.Connection, table: str) -> str:
    """The condition for rows of `table` with a value of the wrong type."""
    return " OR ".join(f"({wrong})" for _, _, _, wrong in _columns(db, table))


def _columns(db: apsw.Connection, table: str) -> list[tuple[str, str, bool, str]]:
    """Name, type, whether it may be NULL, and the condition for a wrong type, of all columns but the row's id."""
    found = []
    info: Any = db.execute(f"PRAGMA table_info({table})")
    for _, name, kind, required, _, key in list(info):
        if key and kind == "INTEGER" and not required:
            continue  # the id of the row, which is always an integer
        wrong = f"typeof({name}) <> '{kind.lower()}'"
        if not required:
            wrong += f" AND typeof({name}) <> 'null'"
        found.append((name, kind, not required, wrong))
    return found


# ---- at the start of a run


def repair_counters(db: apsw.Connection) -> None:
    """Replace numbers that cannot be right in the two tables of one row each."""
    rows = _typed(db, "counters", pid="integer", message="integer", version="integer")
    pid, message, version = rows[0] if len(rows) == 1 else (-1, -1, -1)
    last = _number(db, f"SELECT max(pid) FROM processes WHERE pid < {MAX_PID}")
    right: tuple[Any, ...] = (
        pid if _within(pid, MAX_PID) and pid >= last else last + GAP,
        message if _within(message, MAX_NUMBER) else _last_message(db) + GAP,
        version if _within(version, MAX_NUMBER)
        else _number(db, f"SELECT max(version) FROM regions WHERE version < {MAX_NUMBER}") + GAP,
    )  # fmt: skip
    _replace_row(db, "counters", rows, right)
    rows = _typed(db, "stops", clean="integer", crashes="integer", late="integer", started="real")
    clean, crashes, late, started = rows[0] if len(rows) == 1 else (1, 0, 0, 0.0)
    right = (
        clean if _within(clean, 2) else 1,
        crashes if _within(crashes, MAX_PID) else 0,
        late if _within(late, MOST_LATE) else 0,
        started if type(started) is float and math.isfinite(started) else 0.0,
    )
    _replace_row(db, "stops", rows, right)


def damaged_tasks(db: apsw.Connection) -> list[TaskEnd]:
    """The ends of the tasks that have not ended and cannot run again, because their rows are damaged.

    Sets counts that are out of range to those of a new task, and ends the tasks of which only the time of their end is
    lost.
    """
    now = time.time()
    sound = f"attempt BETWEEN 0 AND {MAX_PID} AND crashes BETWEEN 0 AND {MAX_PID} AND alone BETWEEN 0 AND {MAX_PID}"
    db.execute(
        "UPDATE tasks SET attempt = 1, crashes = 0, alone = 0, trial = 1 "
        f"WHERE ended IS NULL AND NOT ({sound} AND trial BETWEEN -1 AND 2)"
    )
    _log_changes(db, "the counts of tasks in the journal were damaged, and begin again")
    db.execute("UPDATE tasks SET ended = ? WHERE ended IS NULL AND outcome IS NOT NULL", (now,))
    _log_changes(db, "the times at which tasks ended were lost from the journal")
    lost = _column(db, "SELECT id FROM tasks WHERE ended IS NOT NULL AND outcome IS NULL")
    for task in lost:
        end = end_as_damaged(task, "its outcome is lost")
        db.execute(
            "UPDATE tasks SET ended = ?2, reason = ?3, error = ?4, outcome = ?5 WHERE id = ?1",
            (end.id, end.ended, end.reason, end.error, end.outcome),
        )
    found = dict.fromkeys(_with_undecodable_texts(db), "a text is not UTF-8")
    found.update(dict.fromkeys(_without_first_process(db), "the row of its first process is lost"))
    found.update(dict.fromkeys(_with_impossible_numbers(db), "a number of a process is impossible"))
    if lost or found:
        log.error("rows of the journal are damaged", table="tasks", tasks=_ids([*lost, *found]))
    return [end_as_damaged(task, why) for task, why in found.items()]


def _with_undecodable_texts(db: apsw.Connection) -> list[int]:
    texts = "FROM tasks WHERE ended IS NULL"
    try:
        for _ in db.execute(f"SELECT program, owner, key {texts}"):
            pass
    except UnicodeDecodeError:
        found = []
        rows: Any = db.execute(f"SELECT id, CAST(program AS BLOB), CAST(owner AS BLOB), CAST(key AS BLOB) {texts}")
        for number, *values in rows:
            try:
                b"".join(value for value in values if value is not None).decode()
            except UnicodeDecodeError:
                found.append(int(number))
        return found
    return []


def _without_first_process(db: apsw.Connection) -> list[int]:
    """The durable tasks whose first process is lost: run as plain tasks, they would repeat their effects.

    Only durable tasks have processes in the journal. If the row names another task, the program leads to the right one.
    """
    return _column(
        db,
        "SELECT id FROM tasks WHERE ended IS NULL AND id IN (SELECT task FROM processes) "
        "AND id NOT IN (SELECT task FROM processes WHERE parent = 0 AND durable) "
        "UNION SELECT id FROM tasks WHERE ended IS NULL AND id NOT IN (SELECT task FROM processes) "
        "AND CAST(program AS BLOB) IN (SELECT CAST(program AS BLOB) FROM processes "
        "WHERE parent = 0 AND durable AND task NOT IN (SELECT id FROM tasks))",
    )


def _with_impossible_numbers(db: apsw.Connection) -> list[int]:
    """The durable tasks with a process whose other rows cannot belong to it: epochs are even and small."""
    return _column(
        db,
        "SELECT id FROM tasks WHERE ended IS NULL AND id IN (SELECT task FROM processes WHERE NOT "
        f"(pid BETWEEN 1 AND {MAX_PID} AND epoch BETWEEN 0 AND {MAX_PID} AND epoch % 2 = 0))",
    )


# ---- inside


def _within(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit


def _number(db: apsw.Connection, query: str) -> int:
    (value,) = next(iter(db.execute(query)))
    return value if type(value) is int and value > 0 else 0


def _typed(db: apsw.Connection, table: str, **columns: str) -> list[Any]:
    """The rows of `table`, with None in the place of each value of another type."""
    values = ", ".join(f"CASE WHEN typeof({name}) = '{kind}' THEN {name} END" for name, kind in columns.items())
    return list(db.execute(f"SELECT {values} FROM {table}"))


def _last_message(db: apsw.Connection) -> int:
    return max(
        _number(db, f"SELECT max(message) FROM {table} WHERE message < {MAX_NUMBER}")
        for table in ("messages", "replies")
    )


def _replace_row(db: apsw.Connection, table: str, rows: list[Any], right: tuple[Any, ...]) -> None:
    """Make `right` the only row of `table`, unless it is."""
    if rows == [right]:
        return
    log.error("numbers of the journal are damaged, and were replaced", table=table, found=repr(rows)[:200], now=right)
    db.execute(f"DELETE FROM {table}")
    columns = {"counters": "pid, message, version", "stops": "clean, crashes, late, started"}[table]
    db.execute(f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(right))})", right)


def _column(db: apsw.Connection, query: str) -> list[int]:
    rows: Any = db.execute(query)
    return [int(value) for (value,) in rows]


def _log_changes(db: apsw.Connection, what: str) -> None:
    if count := db.changes():
        log.error(what, tasks=count)


def _ids(tasks: list[int]) -> list[str]:
    """The ids of the first tasks, as clients see them."""
    return [f"{task:x}" for task in tasks[:20]]


def _unhex(text: str | None) -> str:
    return bytes.fromhex(text or "")[:200].decode("utf-8", "backslashreplace")
