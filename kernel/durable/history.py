"""The history of one durable process: how far each of its threads has come, and what is left to replay.

Made when the process begins, kept in `Process.durable`. It does no I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from kernel.core.process import Process
from kernel.journal.histories import ProcessRow

DERIVED = 1 << 62  # set in ids of messages that are made from a key; those that are counted stay below


class Key(NamedTuple):
    """A system call of a durable process: the how manyeth of which thread, since which checkpoint."""

    epoch: int
    thread: str
    number: int

    @property
    def sequence(self) -> str:
        """Calls of one sequence are made in the order of their keys.

        Those of odd epochs, which are made anew, come after some that were made in the even one after them: they are a
        sequence of their own.
        """
        return f"{self.thread}'" if self.epoch % 2 else self.thread


class DurableTask:
    """A durable task: its id, its first process, and its processes of an earlier life that have not begun again."""

    __slots__ = ("advanced", "id", "root", "rows")

    def __init__(self, task: int) -> None:
        self.id = task
        self.root: Process | None = None
        self.rows: dict[int, ProcessRow] = {}
        self.advanced = False  # whether it got further in this life


class CallHistory:
    """What is known of a durable process besides what any process has.

    `row` is how an earlier life left it. `last` is the number of the last commit that holds something of it.
    `delivered` says how far the messages of each sequence of a durable sender have come in its mailbox; `given_up` are
    the calls to others whose replies come too late. `heard` are the references of monitors whose end it has received,
    as far as `searched` says that they were looked for, or they came to be replayed.

    Epochs are even, and grow by two with each checkpoint. What is called after a restart, before the last state comes
    back, belongs to the odd one before that of the checkpoint: it comes after all that was cut.
    """

    __slots__ = (
        "begun",
        "context",
        "delivered",
        "epoch",
        "given_up",
        "heard",
        "last",
        "numbers",
        "pid",
        "records",
        "row",
        "searched",
        "tree",
        "version",
    )

    def __init__(self, pid: int, tree: DurableTask, version: str, context: Callable[[Process], Any]) -> None:
        self.pid = pid
        self.tree = tree
        self.version = version
        self.context = context
        self.row: ProcessRow | None = None
        self.epoch = 0
        self.numbers: dict[str, int] = {}  # calls so far, by the path of the thread
        self.records: dict[Key, tuple[bytes, bytes]] = {}
        self.begun: dict[Key, dict[int, tuple[bytes, bool]]] = {}  # by sample: how far model calls had come
        self.delivered: dict[int, dict[str, tuple[int, int]]] = {}  # by pid of the sender, and by `Key.sequence`
        self.given_up: set[int] = set()
        self.heard: set[int] = set()
        self.searched = False
        self.last = 0

    def restore(self, row: ProcessRow) -> None:
        """Go on from how an earlier life left it."""
        self.row = row
        self.epoch = max(row.epoch - 1, 0)
        # Of two rows with one key the later one counts: a call may be cancelled after it was answered.
        self.records = {Key(*fields[:3]): (fields[3], fields[4]) for fields in row.calls}
        for sender, sequence, epoch, number in row.delivered:
            self.delivered.setdefault(sender, {})[sequence] = epoch, number
        for epoch, thread, number, sample, state, file in row.generations:
            self.begun.setdefault(Key(epoch, thread, number), {})[sample] = (state, bool(file))
        row.calls, row.delivered, row.generations = [], [], []

    def next(self, thread: str) -> Key:
        """The key of the call that the thread of this path makes now."""
        number = self.numbers.get(thread, 0)
        self.numbers[thread] = number + 1
        return Key(self.epoch, thread, number)

    def replays(self, thread: str) -> bool:
        """Whether the next call of this thread was made in an earlier life."""
        return Key(self.epoch, thread, self.numbers.get(thread, 0)) in self.records

    def cut(self, epoch: int) -> None:
        """Count calls anew, after a checkpoint."""
        self.epoch = epoch
        self.numbers = {}
        self.given_up.clear()
        self.records = {key: record for key, record in self.records.items() if key.epoch == epoch}

    def call_id(self, key: Key) -> str:
        """A name for a call that is the same in every life, and of no other call."""
        return f"{self.tree.id:x}.{self.pid}.{key.epoch}.{key.thread}.{key.number}"

    def current(self, thread: str) -> str:
        """The id of the call that this thread makes now."""
        return self.call_id(Key(self.epoch, thread, self.numbers[thread] - 1))

    def number(self, key: Key, which: object = "") -> int:
        """A number made from the id of a call, below 2^62: it seeds what the call draws."""
        text = f"{self.call_id(key)}/{which}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % DERIVED

    def give_up(self, key: Key) -> None:
        """The reply to a call comes too late."""
        self.given_up.add(self.message(key))

    def message(self, key: Key, recipient: object = "") -> int:
        """The id of the message that a call sends; of one of its messages, if it sends several."""
        return DERIVED | self.number(key, recipient)


def history_of(process: Process) -> CallHistory:
    """The history of a process that is durable."""
    assert process.durable is not None
    return cast("CallHistory", process.durable)
