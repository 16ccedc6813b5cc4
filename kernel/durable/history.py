"""The history of one durable process: how many calls each thread has made, and the records that are yet to replay.

Made when the process starts, and stored in `Process.durable`. It never does I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from kernel.core.process import Process
from kernel.journal.histories import ProcessRow

DERIVED = 1 << 62  # this bit is set in message ids that derive from a key; ids from the counter are lower


class CallKey(NamedTuple):
    """Identifies a call of a durable process: epoch, path of the thread, number of its earlier calls in the epoch."""

    epoch: int
    thread: str
    number: int

    @property
    def series(self) -> str:
        """The name of a series of calls that a thread makes in the order of (epoch, number).

        After a restart, the calls before the first checkpoint run again, in an odd epoch. The previous run may already
        have made calls of the next even epoch. So odd epochs form a series of their own.
        """
        return f"{self.thread}'" if self.epoch % 2 else self.thread


class DurableTask:
    """A durable task.

    `root` is its first process, and `rows` holds the processes of a previous run that have not restarted, by pid.
    `progressed`: whether a call of the task was recorded in this run of the daemon.
    """

    __slots__ = ("id", "progressed", "root", "rows")

    def __init__(self, task: int) -> None:
        self.id = task
        self.root: Process | None = None
        self.rows: dict[int, ProcessRow] = {}
        self.progressed = False


class CallHistory:
    """The state of a durable process that other processes do not have.

    `row`: its state at the end of the previous run. `last_commit`: the number of the last commit with a change of the
    process. `delivered`: for each series of calls of a durable sender, the last call whose message reached this
    mailbox. `abandoned`: ids of calls that this process gave up; a reply to such a call is too late. `downs_received`:
    references of the monitors whose "down" message was received. `downs_collected`: `downs_received` is complete,
    because the records were searched.

    The epoch is even at first, and a checkpoint adds two. After a restart, the calls before the first checkpoint run
    again, in the odd epoch below that of the last checkpoint, so that their keys are above all that it deleted.
    """

    __slots__ = (
        "abandoned",
        "calls_made",
        "context",
        "delivered",
        "downs_collected",
        "downs_received",
        "epoch",
        "last_commit",
        "pid",
        "records",
        "row",
        "snapshots",
        "task",
        "version",
    )

    def __init__(self, pid: int, task: DurableTask, version: str, context: Callable[[Process], Any]) -> None:
        self.pid = pid
        self.task = task
        self.version = version
        self.context = context
        self.row: ProcessRow | None = None
        self.epoch = 0
        self.calls_made: dict[str, int] = {}  # by the path of the thread, in this epoch
        self.records: dict[CallKey, tuple[bytes, bytes]] = {}
        # The state of each model call in progress, and whether there is a swap file; by call and sample.
        self.snapshots: dict[CallKey, dict[int, tuple[bytes, bool]]] = {}
        # Epoch and number, by pid of the sender and `CallKey.series`.
        self.delivered: dict[int, dict[str, tuple[int, int]]] = {}
        self.abandoned: set[int] = set()
        self.downs_received: set[int] = set()
        self.downs_collected = False
        self.last_commit = 0

    def restore(self, row: ProcessRow) -> None:
        """Take over the state that a previous run of the daemon persisted."""
        self.row = row
        self.epoch = max(row.epoch - 1, 0)
        # Of several rows with one key the last counts: a wait records its deadline first, and its outcome later.
        self.records = {CallKey(*fields[:3]): (fields[3], fields[4]) for fields in row.calls}
        for sender, series, epoch, number in row.delivered:
            self.delivered.setdefault(sender, {})[series] = epoch, number
        for epoch, thread, number, sample, state, file in row.generations:
            self.snapshots.setdefault(CallKey(epoch, thread, number), {})[sample] = (state, bool(file))
        row.calls, row.delivered, row.generations = [], [], []

    def next_key(self, thread: str) -> CallKey:
        """Count a call of the thread with this path, and return the key of the call."""
        number = self.calls_made.get(thread, 0)
        self.calls_made[thread] = number + 1
        return CallKey(self.epoch, thread, number)

    def is_replaying(self, thread: str) -> bool:
        """Whether the next call of this thread has a record."""
        return CallKey(self.epoch, thread, self.calls_made.get(thread, 0)) in self.records

    def start_epoch(self, epoch: int) -> None:
        """Count calls from 0 again, after a checkpoint, and drop the records of earlier epochs."""
        self.epoch = epoch
        self.calls_made = {}
        self.abandoned.clear()
        self.records = {key: record for key, record in self.records.items() if key.epoch == epoch}

    def call_id(self, key: CallKey) -> str:
        """A name for the call: unique, and the same in every run of the daemon."""
        return f"{self.task.id:x}.{self.pid}.{key.epoch}.{key.thread}.{key.number}"

    def current_call_id(self, thread: str) -> str:
        """The id of the call that this thread is making."""
        return self.call_id(CallKey(self.epoch, thread, self.calls_made[thread] - 1))

    def derived_number(self, key: CallKey, which: object = "") -> int:
        """A number below 2^62 that is a hash of the call's id: a seed or a reference, the same in every run."""
        text = f"{self.call_id(key)}/{which}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % DERIVED

    def abandon(self, key: CallKey) -> None:
        """Note that the call was given up: a reply to it is too late."""
        self.abandoned.add(self.message_id(key))

    def message_id(self, key: CallKey, recipient: object = "") -> int:
        """The id of the message that a call sends; if the call sends several, of the message to `recipient`."""
        return DERIVED | self.derived_number(key, recipient)


def history_of(process: Process) -> CallHistory:
    """The history of a durable process."""
    assert process.durable is not None
    return cast("CallHistory", process.durable)
