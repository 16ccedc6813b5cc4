"""Reads durable processes when a daemon starts: first the state that the daemon needs, later each task's processes.

Called by the writer, and by the task subsystem through `Journal.read`, on the journal's thread. It never decodes a
value. A damaged row fails only the task that it belongs to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec
import structlog

from ipc.errors import HistoryDamaged
from kernel.journal.changes import PROCESS_TABLES
from kernel.journal.records import text_of
from kernel.journal.suspects import RestartPlan

if TYPE_CHECKING:
    from kernel.journal.store import Store

CHUNK = 500  # processes whose rows one query reads
VERSIONS = 1 << 32  # versions of regions that are reserved for each run of the daemon
PIDS = 100  # pids that are reserved for each run at its start; the kernel requests more as it uses them
NO_PLAN = RestartPlan()
log = structlog.get_logger("kernel.journal")

ORPHANS = "SELECT pid FROM processes WHERE task NOT IN (SELECT id FROM tasks WHERE ended IS NULL)"


class RecoveredState(msgspec.Struct, frozen=True):
    """The state that the daemon needs before it answers clients.

    `pid`, `message` and `version` are the highest numbers in use. The pids up to `reserved` are on disk for this run.
    `expected` lists the durable processes that will restart (pid, task), and `names` maps their names to their pids.
    `regions` lists the durable regions (name, version, owner, msgpack of the value), and `generations` the generations
    that have a file (task, pid, epoch, thread, number, sample). `crashes` counts the runs in a row that crashed before
    this one. If tasks are held back, each group of tasks that restarts is on trial for `trial_seconds`; `alone`: the
    first group is a single task, and no other task may run beside it.
    """

    pid: int = 0
    message: int = 0
    version: int = 0
    expected: list[tuple[int, int]] = []
    names: dict[str, int] = {}
    regions: list[tuple[str, int, str, bytes]] = []
    generations: list[tuple[int, int, int, str, int, int]] = []
    reserved: int = PIDS
    crashes: int = 0
    trial_seconds: float = 0.0
    alone: bool = False


class ProcessRow(msgspec.Struct):
    """The rows of a process at the start of this run. `kernel.journal.schema` explains the fields."""

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


# Each part: field of `ProcessRow`, columns and table, order. One column makes a list of values, several make tuples.
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


def recover_state(store: Store, plan: RestartPlan = NO_PLAN) -> RecoveredState:
    """Read the state that the daemon needs first, and reserve pids and versions of regions for this run."""
    db = store.db
    numbers: Any = next(iter(db.execute("SELECT pid, message, version FROM counters")))
    db.execute("UPDATE counters SET pid = pid + ?, version = version + ?", (PIDS, VERSIONS))
    expected: list[Any] = list(db.execute("SELECT pid, task FROM processes WHERE durable AND status IS NULL"))
    names: dict[str, int] = {}
    rows: Any = db.execute(
        "SELECT CAST(name AS BLOB), pid FROM names "
        "WHERE pid IN (SELECT pid FROM processes WHERE durable AND status IS NULL)"
    )
    for name, pid in rows:
        with contextlib.suppress(UnicodeDecodeError):  # its task fails when its history is loaded
            names[name.decode()] = pid
    regions: list[Any] = []
    rows = db.execute("SELECT CAST(name AS BLOB), version, CAST(owner AS BLOB), value FROM regions ORDER BY version")
    for name, version, owner, value in rows:
        try:
            regions.append((name.decode(), version, owner.decode(), value))
        except UnicodeDecodeError as error:
            log.error("skipped a durable region that cannot be read", name=text_of(name), error=str(error))
    generations: list[Any] = []
    rows = db.execute(
        "SELECT task, generations.pid, generations.epoch, CAST(thread AS BLOB), number, sample "
        "FROM generations JOIN processes ON processes.pid = generations.pid WHERE file"
    )
    for task, pid, epoch, thread, number, sample in rows:
        with contextlib.suppress(UnicodeDecodeError):
            generations.append((task, pid, epoch, thread.decode(), number, sample))
    pid, message, version = numbers
    reserved = pid + PIDS
    trial = plan.crashes, plan.trial_seconds, plan.alone
    return RecoveredState(pid, message, version, expected, names, regions, generations, reserved, *trial)


def load(store: Store, tasks: Sequence[int]) -> dict[int, list[ProcessRow] | HistoryDamaged]:
    """The processes of durable tasks, by task, with all their rows. The first process of a task comes first.

    The error, if a row of the task is damaged.
    """
    try:
        return dict(_load(store, tasks))
    except (UnicodeDecodeError, HistoryDamaged) as error:
        if len(tasks) == 1:
            return {tasks[0]: HistoryDamaged(f"the journal's rows of this task are damaged: {error}")}
    found: dict[int, list[ProcessRow] | HistoryDamaged] = {}
    for task in tasks:
        found |= load(store, [task])
    return found


def _load(store: Store, tasks: Sequence[int]) -> dict[int, list[ProcessRow]]:
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
    for row in rows.values():
        # The replay would not find a record with another epoch or a negative number, and would repeat the call.
        if any(not 0 <= epoch <= row.epoch or number < 0 for epoch, _, number, _, _ in row.calls):
            raise HistoryDamaged(f"a recorded call of process {row.pid} has an impossible number")
    return found


def forget_ended(store: Store) -> None:
    """Delete the processes of tasks that have ended or were never accepted, with all their rows."""
    for table in PROCESS_TABLES:
        store.db.execute(f"DELETE FROM {table} WHERE pid IN ({ORPHANS})")
    store.db.execute(f"DELETE FROM processes WHERE pid IN ({ORPHANS})")


def _marks(values: Sequence[int]) -> str:
    return ",".join("?" * len(values))
