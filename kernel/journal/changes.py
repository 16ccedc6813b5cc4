"""What durable processes have the journal keep besides tasks: each kind of change, with its statements.

Made by the subsystems of the loop, and handed to the journal with `Journal.keep`; written by its thread, in the order
in which they were asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import apsw

# A process and all below it: children of one that ends may not have been written down as ended.
BELOW = """WITH RECURSIVE below (pid) AS (
    VALUES (?1) UNION SELECT processes.pid FROM processes JOIN below ON processes.parent = below.pid
)"""
TABLES = (
    "calls",
    "generations",
    "messages",
    "delivered",
    "replies",
    "memory",
    "names",
    "subscriptions",
)  # what a process has

Change = tuple[Any, ...]  # one of the kinds below


class PutProcess(NamedTuple):
    """A process begins: a durable one, or a child of such."""

    pid: int
    task: int
    parent: int
    program: str
    version: str
    durable: bool


class Suspended(NamedTuple):
    """Whether a process is suspended."""

    suspended: bool
    pid: int


class PriorityChanged(NamedTuple):
    """The priority that a process was given."""

    priority: int
    pid: int


class Checkpointed(NamedTuple):
    """A checkpoint: all earlier calls are forgotten, and so are the children, all of which have ended.

    `pending_calls` holds the calls of others that are not answered yet.
    """

    pid: int
    epoch: int
    state: bytes
    pending_calls: bytes


class ChildEnded(NamedTuple):
    """A child of a durable process has ended: its status stays, all else of it goes."""

    pid: int
    status: bytes


class TaskEnded(NamedTuple):
    """A task has ended, and nothing of its processes is needed any more."""

    task: int


class TaskProgressed(NamedTuple):
    """A task got further in this life: it is not what the daemon dies of."""

    task: int


class DaemonStable(NamedTuple):
    """The daemon has lived for long: durable tasks that are there since its start are not what it dies of."""


class PutCall(NamedTuple):
    """A system call is complete."""

    pid: int
    epoch: int
    thread: str
    number: int
    call: bytes
    outcome: bytes


class PutGeneration(NamedTuple):
    """A model call that is not complete has come so far."""

    pid: int
    epoch: int
    thread: str
    number: int
    sample: int
    state: bytes
    file: bool


class DropGenerations(NamedTuple):
    """It is complete, or given up."""

    pid: int
    epoch: int
    thread: str
    number: int


class PutMessage(NamedTuple):
    """A message comes into a durable mailbox."""

    pid: int
    message: int
    expires: float | None
    envelope: bytes


class DropMessage(NamedTuple):
    """A message leaves a durable mailbox."""

    pid: int
    message: int


class Delivered(NamedTuple):
    """How far the messages of a thread of a durable sender have come in a durable mailbox (`Key.sequence`)."""

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
    """The caller has taken it."""

    message: int


class PutMemory(NamedTuple):
    """A key of the private memory."""

    pid: int
    key: str
    value: bytes


class DropMemory(NamedTuple):
    """A key was deleted."""

    pid: int
    key: str


class PutName(NamedTuple):
    """A process has a name."""

    name: str
    pid: int


class DropName(NamedTuple):
    """It gave the name up."""

    name: str


class PutSubscription(NamedTuple):
    """A process subscribed."""

    pid: int
    pattern: str


class DropSubscription(NamedTuple):
    """It took that back."""

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
    """Numbers that were given out: pids and ids of messages. Those of later lives are higher."""

    pid: int = 0
    message: int = 0


# Each is executed with the values of the change; with numbers, all of them have to occur in it.
STATEMENTS: dict[type[Change], tuple[str, ...]] = {
    PutProcess: (
        "INSERT OR REPLACE INTO processes (pid, task, parent, program, version, durable, epoch, suspended) "
        "VALUES (?, ?, ?, ?, ?, ?, 0, 0)",
    ),
    Suspended: ("UPDATE processes SET suspended = ? WHERE pid = ?",),
    PriorityChanged: ("UPDATE processes SET priority = ? WHERE pid = ?",),
    Checkpointed: (
        "DELETE FROM calls WHERE pid = ?1 AND epoch < ?2 AND ?3 IS NOT NULL AND ?4 IS NOT NULL",
        "DELETE FROM processes WHERE parent = ?1 AND ?2 AND ?3 IS NOT NULL AND ?4 IS NOT NULL",
        "UPDATE processes SET epoch = ?2, state = ?3, owed = ?4 WHERE pid = ?1",
    ),
    ChildEnded: (
        f"{BELOW} DELETE FROM delivered WHERE sender IN below AND ?2 IS NOT NULL",
        *(f"{BELOW} DELETE FROM {table} WHERE pid IN below AND ?2 IS NOT NULL" for table in TABLES),
        f"{BELOW} DELETE FROM processes WHERE pid IN below AND pid <> ?1 AND ?2 IS NOT NULL",
        "UPDATE processes SET status = ?2 WHERE pid = ?1",
    ),
    TaskEnded: (
        "DELETE FROM delivered WHERE sender IN (SELECT pid FROM processes WHERE task = ?)",
        *(f"DELETE FROM {table} WHERE pid IN (SELECT pid FROM processes WHERE task = ?)" for table in TABLES),
        "DELETE FROM processes WHERE task = ?",
    ),
    TaskProgressed: ("UPDATE tasks SET crashes = 0 WHERE id = ? AND crashes > 0",),
    DaemonStable: (
        "UPDATE tasks SET crashes = 0 WHERE ended IS NULL AND crashes > 0 "
        "AND id IN (SELECT task FROM processes WHERE durable)",
    ),
    PutCall: ("INSERT INTO calls (pid, epoch, thread, number, call, outcome) VALUES (?, ?, ?, ?, ?, ?)",),
    PutGeneration: ("INSERT OR REPLACE INTO generations VALUES (?, ?, ?, ?, ?, ?, ?)",),
    DropGenerations: ("DELETE FROM generations WHERE pid = ? AND epoch = ? AND thread = ? AND number = ?",),
    # A commit that failed is made again, and the disk may have it all the same.
    PutMessage: (
        "INSERT INTO messages (pid, message, expires, envelope) SELECT ?1, ?2, ?3, ?4 "
        "WHERE NOT EXISTS (SELECT 1 FROM messages WHERE pid = ?1 AND message = ?2)",
    ),
    DropMessage: ("DELETE FROM messages WHERE pid = ? AND message = ?",),
    Delivered: ("INSERT OR REPLACE INTO delivered VALUES (?, ?, ?, ?, ?)",),
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
}


def write(db: apsw.Connection, changes: Iterable[Change]) -> None:
    """Make `changes`, in their order, within the transaction of the caller."""
    for kind, rows in groupby(changes, type):
        statements = STATEMENTS[kind]
        if len(statements) == 1:
            db.executemany(statements[0], rows)
            continue
        for row in rows:
            for statement in statements:
                db.execute(statement, row)
