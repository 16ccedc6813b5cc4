"""What the journal has of durable processes when a daemon starts: what all need to know at once, and task by task.

Run on the journal's thread. It decodes nothing: a row that is damaged is the matter of its own task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from kernel.journal.changes import TABLES

if TYPE_CHECKING:
    from kernel.journal.store import Store

CHUNK = 500  # processes that one query reads of
VERSIONS = 1 << 32  # of regions that one life of the daemon may give out
ORPHANS = "SELECT pid FROM processes WHERE task NOT IN (SELECT id FROM tasks WHERE ended IS NULL)"


class Opening(msgspec.Struct, frozen=True):
    """What the journal knows when it is opened.

    The highest numbers given out; the durable processes to expect with their tasks, and the names they hold with their
    pids; the regions: name, version, owner, msgpack of the value; and the generations that have a file: task, pid,
    epoch, thread, number, sample.
    """

    pid: int = 0
    message: int = 0
    version: int = 0
    expected: list[tuple[int, int]] = []
    names: dict[str, int] = {}
    regions: list[tuple[str, int, str, bytes]] = []
    generations: list[tuple[int, int, int, str, int, int]] = []


class ProcessRow(msgspec.Struct):
    """A process as it was left. The fields are those of the tables in `kernel.journal.schema`."""

    pid: int
    parent: int
    program: str
    version: str
    durable: bool
    epoch: int
    state: bytes | None
    suspended: bool
    status: bytes | None
    priority: int | None
    pending_calls: bytes | None
    calls: list[tuple[int, str, int, bytes, bytes]] = []
    generations: list[tuple[int, str, int, int, bytes, int]] = []
    messages: list[tuple[float | None, bytes]] = []
    delivered: list[tuple[int, str, int, int]] = []
    replies: list[tuple[int, bytes]] = []
    memory: list[tuple[str, bytes]] = []
    names: list[str] = []
    subscriptions: list[str] = []


# Field of `ProcessRow`, columns and table; those of one column are lists of that.
PARTS = (
    ("calls", "epoch, thread, number, call, outcome FROM calls", "id"),
    ("generations", "epoch, thread, number, sample, state, file FROM generations", "number"),
    ("messages", "expires, envelope FROM messages", "id"),
    ("delivered", "sender, thread, epoch, number FROM delivered", "sender"),
    ("replies", "message, body FROM replies", "message"),
    ("memory", "key, value FROM memory", "id"),
    ("names", "name FROM names", "name"),
    ("subscriptions", "pattern FROM subscriptions", "pattern"),
)


def opening(store: Store) -> Opening:
    """What must be known before anybody is answered anything. A life begins with this, and what it numbers."""
    db = store.db
    numbers: Any = next(iter(db.execute("SELECT pid, message, version FROM counters")))
    db.execute("UPDATE counters SET version = version + ?", (VERSIONS,))
    expected: list[Any] = list(db.execute("SELECT pid, task FROM processes WHERE durable AND status IS NULL"))
    names = {
        str(name): int(pid)
        for name, pid in db.execute(
            "SELECT name, pid FROM names WHERE pid IN (SELECT pid FROM processes WHERE durable AND status IS NULL)"
        )
    }
    regions: list[Any] = list(db.execute("SELECT name, version, owner, value FROM regions ORDER BY version"))
    generations: list[Any] = list(
        db.execute(
            "SELECT task, generations.pid, generations.epoch, thread, number, sample "
            "FROM generations JOIN processes ON processes.pid = generations.pid WHERE file"
        )
    )
    return Opening(numbers[0], numbers[1], numbers[2], expected, names, regions, generations)


def load(store: Store, tasks: Sequence[int]) -> dict[int, list[ProcessRow]]:
    """The processes of durable tasks with all that is theirs, by task; the first one of each first."""
    found: dict[int, list[ProcessRow]] = {task: [] for task in tasks}
    rows: dict[int, ProcessRow] = {}
    columns = "task, pid, parent, program, version, durable, epoch, state, suspended, status, priority, owed"
    query = f"SELECT {columns} FROM processes WHERE task IN ({_marks(tasks)}) ORDER BY pid"
    for values in store.db.execute(query, tuple(tasks)):
        task, pid, parent, program, version, durable, epoch, state, suspended, status, priority, pending_calls = cast(
            "Any", values
        )
        rows[pid] = ProcessRow(
            pid, parent, program, version, bool(durable), epoch, state, bool(suspended), status, priority, pending_calls
        )
        found[task].append(rows[pid])
    pids = list(rows)
    for start in range(0, len(pids), CHUNK):
        chunk = pids[start : start + CHUNK]
        for field, part, order in PARTS:
            query = f"SELECT pid, {part} WHERE pid IN ({_marks(chunk)}) ORDER BY pid, {order}"
            for values in store.db.execute(query, tuple(chunk)):
                fields = cast("Any", values)[1:]
                getattr(rows[cast("int", values[0])], field).append(fields[0] if len(fields) == 1 else fields)
    return found


def _marks(values: Sequence[int]) -> str:
    return ",".join("?" * len(values))


def forget_ended(store: Store) -> None:
    """Drop what is left of tasks that have ended, or never came to be."""
    for table in TABLES:
        store.db.execute(f"DELETE FROM {table} WHERE pid IN ({ORPHANS})")
    store.db.execute(f"DELETE FROM processes WHERE pid IN ({ORPHANS})")
