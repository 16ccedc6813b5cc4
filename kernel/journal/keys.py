"""Idempotency keys: what comes of a task whose key was used before.

Called by the store, on the journal's thread.
"""

from __future__ import annotations

from ipc.codec import decode
from ipc.errors import KeyReused, MalformedFrame
from ipc.syscalls import Submit
from kernel.journal.records import Accepted, Kept


def same_work(task: Accepted, call: bytes) -> bool:
    """Whether both are the same work: program and arguments. What is in a row that nobody can read is other work."""
    try:
        ours, theirs = decode(task.call, Submit), decode(call, Submit)
    except MalformedFrame:
        return False
    return (ours.program, ours.args, ours.positional) == (theirs.program, theirs.args, theirs.positional)


def reused(task: Accepted) -> KeyReused:
    return KeyReused(
        f"key {task.key!r} of owner {task.owner!r} belongs to a task with another program or other arguments; "
        "use a new key for new work",
        key=task.key,
    )


def kept(task: Accepted) -> Kept:
    return Kept(task.id, task.program, task.owner, task.submitted, task.attempt, None, "", "", b"")
