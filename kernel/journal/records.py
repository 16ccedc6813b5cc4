"""The records of tasks, as they are written to the journal and read from it.

The loop and the journal's thread pass records to each other. A record decides whether two tasks with one idempotency
key are the same work. It never touches the file or a table of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ipc.codec import decode
from ipc.errors import KeyReused, MalformedFrame
from ipc.syscalls import Submit

# The types of the values that the journal stores. SQLite stores some look-alikes as bytes, such as integers of numpy.
EXACT = frozenset({int, float, str, bytes, bool, type(None)})


def check_exact(kind: str, names: Iterable[str], values: Sequence[Any]) -> None:
    """Raise a `TypeError` that names the first of `values` whose type is not exactly one of `EXACT`, or that is NaN."""
    types = set(map(type, values))
    if types <= EXACT and (float not in types or all(value == value for value in values)):  # noqa: PLR0124
        return
    for name, value in zip(names, values, strict=True):
        if type(value) not in EXACT:
            raise TypeError(f"{name} of {kind} is a {type(value).__module__}.{type(value).__qualname__}")
        if value != value:  # noqa: PLR0124
            raise TypeError(f"{name} of {kind} is NaN, which SQLite stores as NULL")


class AcceptedTask(msgspec.Struct):
    """A task to persist. `call` is the msgpack of its `Submit`; `id` is 0 until the journal assigns one.

    `pid` and `version` are those of the first process and of its code if this process is durable; else `pid` is 0.
    `former_owner`: the owner that earlier versions of llmosd gave to such a task, or "". A key of that owner counts as
    a key of this task's owner. `group`: 0 restarts at once; a higher group waits for the trials of the lower ones.
    """

    program: str
    owner: str
    key: str | None
    call: bytes
    submitted: float
    id: int = 0
    attempt: int = 1
    pid: int = 0
    version: str = ""
    former_owner: str = ""
    group: int = 0

    def is_same_work(self, call: bytes) -> bool:
        """Whether `call`, the msgpack of another `Submit`, asks for the same program with the same arguments.

        A call that cannot be decoded counts as other work.
        """
        try:
            ours, theirs = decode(self.call, Submit), decode(call, Submit)
        except MalformedFrame:
            return False
        return (ours.program, ours.args, ours.positional) == (theirs.program, theirs.args, theirs.positional)

    def key_reused(self) -> KeyReused:
        """The error for a second task that has the key of this task but is other work."""
        return KeyReused(
            f"key {self.key!r} of owner {self.owner!r} belongs to a task with another program or other arguments; "
            "use a new key for new work",
            key=self.key,
        )

    def as_row(self) -> TaskRow:
        """The row of this task in the journal, right after it was accepted."""
        return TaskRow(self.id, self.program, self.owner, self.submitted, self.attempt, None, "", "", b"")


class TaskEnd(msgspec.Struct, frozen=True):
    """The end of a task. `outcome` is the msgpack of its last event."""

    id: int
    ended: float
    reason: str
    error: str
    outcome: bytes


class TaskRow(msgspec.Struct, frozen=True):
    """A task in the journal. Until it has ended, `ended` is None and `outcome` is empty."""

    id: int
    program: str
    owner: str
    submitted: float
    attempt: int
    ended: float | None
    reason: str
    error: str
    outcome: bytes


def row_of(values: Sequence[Any]) -> TaskRow:
    """A `TaskRow` whose texts are still bytes, as the store reads them."""
    number, program, owner, submitted, attempt, ended, reason, error, outcome = values
    texts = text_of(program), text_of(owner), text_of(reason), text_of(error)
    return TaskRow(number, texts[0], texts[1], submitted, attempt, ended, texts[2], texts[3], outcome)


def text_of(data: bytes | None) -> str:
    """The text in `data`, with escapes in the place of damaged bytes."""
    return (data or b"").decode("utf-8", "backslashreplace")
