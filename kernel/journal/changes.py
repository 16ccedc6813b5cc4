"""The changes that durable processes make in the journal: one class for each kind, and the SQL that applies it.

Durable subsystems make changes on the loop and pass them to `Journal.persist`; the journal's thread writes them in the
order of the requests. A change never encodes or decodes: its fields are the values of the statements.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from kernel.journal.records import check_exact

if TYPE_CHECKING:
    import apsw

# A process and all its descendants. When a process ends, the journal may still list its children as running.
DESCENDANTS = """WITH RECURSIVE below (pid) AS (
    VALUES (?1) UNION SELECT processes.pid FROM processes JOIN below ON processes.parent = below.pid
)"""
PROCESS_TABLES = (
    "calls",
    "generations",
    "messages",
    "delivered",
    "replies",
    "memory",
    "names",
    "subscriptions",
)  # the tables whose rows belong to a process; their column `pid` names it

Change = tuple[Any, ...]  # an instance of one of the classes below


class PutProcess(NamedTuple):
    """A process starts: a durable process, or a child of one."""

    pid: int
    task: int
    parent: int
    program: str
    version: str
    durable: bool


class SetSuspended(NamedTuple):
    """A process was suspended or resumed."""

    suspended: bool
    pid: int


class SetPriority(NamedTuple):
    """A process has got another priority."""

    priority: int
    pid: int


class Checkpointed(NamedTuple):
    """A process made a checkpoint: the rows of its earlier calls and of its ended and detached children are deleted.

    `pending_calls` holds the calls from other processes that this process has not answered yet.
    """

    pid: int
    epoch: int
    state: bytes
    pending_calls: bytes


class ChildEnded(NamedTuple):
    """A child of a durable process has ended: its exit status stays; all its other rows and descendants are deleted."""

    pid: int
    status: bytes


class TaskEnded(NamedTuple):
    """A task has ended: the journal deletes all that belongs to its processes."""

    task: int


class TaskProgressed(NamedTuple):
    """A task made progress in this run, so it did not cause the earlier crashes: its crash count becomes 0."""

    task: int


class DaemonStable(NamedTuple):
    """The daemon has run for long, so no durable task makes it crash: the crash counts of all of them become 0."""


class TaskBegan(NamedTuple):
    """A task that was held back begins, and is on trial: it may be the one that makes the daemon die."""

    task: int


class TaskWaits(NamedTuple):
    """A task cannot restart yet, as its program is broken: neither this attempt nor a crash counts for it."""

    task: int


class TrialBegan(NamedTuple):
    """A group of tasks that were held back begins at this time, in seconds since the epoch."""

    at: float


class TaskCleared(NamedTuple):
    """A task ran through its trial."""

    task: int


class DaemonHealthy(NamedTuple):
    """The daemon has run for long, so its next crash is the first one of a row."""


class StopBegan(NamedTuple):
    """The daemon stops on request, so its end is no crash, whatever delays or interrupts the stop."""


class PutCall(NamedTuple):
    """A system call is complete; or it waits, and `outcome` is its deadline. Of several rows the last one counts."""

    pid: int
    epoch: int
    thread: str
    number: int
    call: bytes
    outcome: bytes


class PutGeneration(NamedTuple):
    """The state of one sample of an unfinished model call; `file`: whether its KV cache is on disk."""

    pid: int
    epoch: int
    thread: str
    number: int
    sample: int
    state: bytes
    file: bool


class DropGenerations(NamedTuple):
    """A model call is complete or was given up: the states of its samples are deleted."""

    pid: int
    epoch: int
    thread: str
    number: int


class PutMessage(NamedTuple):
    """A message enters a durable mailbox."""

    pid: int
    message: int
    expires: float | None
    envelope: bytes


class DropMessage(NamedTuple):
    """A message leaves a durable mailbox."""

    pid: int
    message: int


class PutLastDelivered(NamedTuple):
    """The key of the last message that a durable mailbox got from one thread of a durable sender.

    `thread` is `CallKey.series` of `kernel.durable.history`.
    """

    pid: int
    sender: int
    thread: str
    epoch: int
    number: int


class PutReply(NamedTuple):
    """The reply to a call of the durable process `pid`."""

    message: int
    pid: int
    body: bytes


class DropReply(NamedTuple):
    """The caller has taken the reply."""

    message: int


class PutMemory(NamedTuple):
    """A key of the private memory has a new value."""

    pid: int
    key: str
    value: bytes


class DropMemory(NamedTuple):
    """A key of the private memory was deleted."""

    pid: int
    key: str


class PutName(NamedTuple):
    """A process registered a name."""

    name: str
    pid: int


class DropName(NamedTuple):
    """A process gave up a name."""

    name: str


class PutSubscription(NamedTuple):
    """A process subscribed to a pattern of topics."""

    pid: int
    pattern: str


class DropSubscription(NamedTuple):
    """A process unsubscribed from a pattern."""

    pid: int
    pattern: str


class PutRegion(NamedTuple):
    """A shared region has a new value."""

    name: str
    version: int
    owner: str
    value: bytes


class DropRegion(NamedTuple):
    """A shared region was deleted."""

    name: str


class HighestIds(NamedTuple):
    """The highest pid and message id in use, or reserved. Later runs of the daemon number from above them."""

    pid: int = 0
    message: int = 0


class LastPid(NamedTuple):
    """The daemon stops in order, and gave out no pid above this one: the rest of the reserved pids is free again."""

    pid: int


# Each statement is executed with all fields of the change. SQLite must find a parameter for each field, so a statement
# with numbered parameters also mentions those that it does not need.
STATEMENTS: dict[type[Change], tuple[str, ...]] = {
    PutProcess: (
        "INSERT OR REPLACE INTO processes (pid, task, parent, program, version, durable, epoch, suspended) "
        "VALUES (?, ?, ?, ?, ?, ?, 0, 0)",
    ),
    SetSuspended: ("UPDATE processes SET suspended = ? WHERE pid = ?",),
    SetPriority: ("UPDATE processes SET priority = ? WHERE pid = ?",),
    Checkpointed: (
        "DELETE FROM calls WHERE pid = ?1 AND epoch < ?2 AND ?3 IS NOT NULL AND ?4 IS NOT NULL",
        "DELETE FROM processes WHERE parent = ?1 AND ?2 AND ?3 IS NOT NULL AND ?4 IS NOT NULL",
        "UPDATE processes SET epoch = ?2, state = ?3, owed = ?4 WHERE pid = ?1",
    ),
    ChildEnded: (
        f"{DESCENDANTS} DELETE FROM delivered WHERE sender IN below AND ?2 IS NOT NULL",
        *(f"{DESCENDANTS} DELETE FROM {table} WHERE pid IN below AND ?2 IS NOT NULL" for table in PROCESS_TABLES),
        f"{DESCENDANTS} DELETE FROM processes WHERE pid IN below AND pid <> ?1 AND ?2 IS NOT NULL",
        "UPDATE processes SET status = ?2 WHERE pid = ?1",
    ),
    TaskEnded: (
        "DELETE FROM delivered WHERE sender IN (SELECT pid FROM processes WHERE task = ?)",
        *(f"DELETE FROM {table} WHERE pid IN (SELECT pid FROM processes WHERE task = ?)" for table in PROCESS_TABLES),
        "DELETE FROM processes WHERE task = ?",
    ),
    TaskProgressed: ("UPDATE tasks SET crashes = 0 WHERE id = ? AND crashes > 0",),
    DaemonStable: (
        "UPDATE tasks SET crashes = 0 WHERE ended IS NULL AND crashes > 0 "
        "AND id IN (SELECT task FROM processes WHERE durable)",
    ),
    TaskBegan: ("UPDATE tasks SET trial = 1, attempt = attempt + 1 WHERE id = ? AND trial < 1",),
    TaskWaits: ("UPDATE tasks SET trial = -1, attempt = attempt - 1 WHERE id = ? AND trial > 0",),
    TrialBegan: ("UPDATE stops SET started = ?",),
    TaskCleared: ("UPDATE tasks SET trial = 2 WHERE id = ? AND trial = 1",),
    DaemonHealthy: (
        "UPDATE stops SET crashes = 0, late = 0",
        "UPDATE tasks SET alone = 0 WHERE ended IS NULL AND alone > 0",
    ),
    StopBegan: ("UPDATE stops SET clean = 1",),
    PutCall: ("INSERT INTO calls (pid, epoch, thread, number, call, outcome) VALUES (?, ?, ?, ?, ?, ?)",),
    PutGeneration: ("INSERT OR REPLACE INTO generations VALUES (?, ?, ?, ?, ?, ?, ?)",),
    DropGenerations: ("DELETE FROM generations WHERE pid = ? AND epoch = ? AND thread = ? AND number = ?",),
    # A failed commit is repeated although it may be on disk already: the row must not appear twice.
    PutMessage: (
        "INSERT INTO messages (pid, message, expires, envelope) SELECT ?1, ?2, ?3, ?4 "
        "WHERE NOT EXISTS (SELECT 1 FROM messages WHERE pid = ?1 AND message = ?2)",
    ),
    DropMessage: ("DELETE FROM messages WHERE pid = ? AND message = ?",),
    PutLastDelivered: ("INSERT OR REPLACE INTO delivered VALUES (?, ?, ?, ?, ?)",),
    PutReply: ("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)",),
    DropReply: ("DELETE FROM replies WHERE message = ?",),
    PutMemory: (
        "INSERT INTO memory (pid, key, value) VALUES (?, ?, ?) "
        "ON CONFLICT (pid, key) DO UPDATE SET value = excluded.value",
    ),
    DropMemory: ("DELETE FROM memory WHERE pid = ? AND key = ?",),
    PutName: ("INSERT OR REPLACE INTO names VALUES (?, ?)",),
    DropName: ("DELETE FROM names WHERE name = ?",),
    PutSubscription: ("INSERT OR REPLACE INTO subscriptions VALUES (?, ?)",),
    DropSubscription: ("DELETE FROM subscriptions WHERE pid = ? AND pattern = ?",),
    PutRegion: ("INSERT OR REPLACE INTO regions VALUES (?, ?, ?, ?)",),
    DropRegion: ("DELETE FROM regions WHERE name = ?",),
    HighestIds: ("UPDATE counters SET pid = max(pid, ?), message = max(message, ?)",),
    LastPid: ("UPDATE counters SET pid = ?",),
}


# Changes whose `pid` is no process that depends on them. A message that cannot be stored is an error of its sender.
OF_NO_PROCESS = (PutMessage, HighestIds, LastPid)


def write(db: apsw.Connection, changes: Iterable[Change]) -> None:
    """Apply `changes` in their order. The caller has begun the transaction and commits it."""
    for kind, rows in groupby(changes, type):
        statements = STATEMENTS[kind]
        checked = _checked(kind, rows)
        if len(statements) == 1:
            db.executemany(statements[0], checked)
            continue
        for row in checked:
            for statement in statements:
                db.execute(statement, row)


def dependents(changes: Iterable[Change]) -> tuple[set[int], set[int]]:
    """The pids and the tasks whose state on disk is wrong if `changes` are not written."""
    pids: set[int] = set()
    tasks: set[int] = set()
    for change in changes:
        if type(change) not in OF_NO_PROCESS:
            pids.add(getattr(change, "pid", None))  # type: ignore[arg-type]
            tasks.add(getattr(change, "task", None))  # type: ignore[arg-type]
    return {pid for pid in pids if is_row_id(pid)}, {task for task in tasks if is_row_id(task)}


def is_row_id(value: Any) -> bool:
    """Whether `value` can be the id of a row."""
    return type(value) is int and 0 <= value < 1 << 63


def _checked(kind: type[Change], rows: Iterable[Change]) -> Iterator[Change]:
    """Raises `TypeError` at a row with a value that is no plain value."""
    for row in rows:
        check_exact(kind.__name__, kind._fields, row)  # type: ignore[attr-defined]
        yield row
