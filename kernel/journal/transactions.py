"""Writes the requests of one transaction: all together, or one by one to find those that cannot be stored.

The writer calls it on the journal's thread. A value that SQLite refuses, or any other error that the disk did not
cause, costs only the request that contains it and the tasks that depend on this request. All other errors are raised:
then no request is on disk.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import apsw
import structlog

from ipc.codec import encode
from ipc.errors import NotStorable, brief, to_wire
from ipc.messages import Failed
from kernel.journal.changes import dependents, is_row_id
from kernel.journal.records import AcceptedTask, TaskEnd, TaskRow
from kernel.journal.requests import Accept, Finish, Persist
from kernel.journal.store import Store
from kernel.lib import failpoints

# The errors of SQLite that a value causes; APSW has one class for each primary result code. All others are of the disk,
# of the file (also SQLITE_ERROR: a file without our tables), or of the connection, and a new connection may help.
OF_VALUES = (
    apsw.TooBigError,
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.RangeError,
    apsw.BindingsError,
    apsw.NoMemError,
)

Request = Accept | Finish | Persist

log = structlog.get_logger("kernel.journal")


class GivenUp(Exception):
    """Because of the error of one request, SQLite itself has rolled the whole transaction back."""


def is_of_a_value(error: Exception) -> bool:
    """Whether the disk did not cause `error`, so that trying again with the same values would not help."""
    if isinstance(error, apsw.Error):
        return isinstance(error, OF_VALUES)
    return not isinstance(error, OSError)


def write_together(
    store: Store, accepts: Sequence[Accept], ends: Sequence[Finish | Persist], withdrawn: Sequence[int]
) -> None:
    """Delete the tasks `withdrawn`, then write all requests, and set their outcomes. Raises any error."""
    tasks = [one.task for one in accepts]
    with store.transaction(single=not ends and not withdrawn and store.fits_one_statement(tasks)):
        failpoints.point("journal.apply")
        if withdrawn:
            store.withdraw(withdrawn)
        outcomes = store.accept(tasks)
        store.apply(change for one in ends if type(one) is Persist for change in one.changes)
        store.finish([one.end for one in ends if type(one) is Finish])
        if ends:  # also of tasks found by their keys, which are answered after their ends
            outcomes = [_updated(store, outcome) for outcome in outcomes]
    for accept, outcome in zip(accepts, outcomes, strict=True):
        accept.outcome = outcome
    for end in ends:
        end.outcome = None


def write_one_by_one(
    store: Store, accepts: Sequence[Accept], ends: Sequence[Finish | Persist], withdrawn: Sequence[int]
) -> None:
    """Like `write_together`, but refuse the requests that cannot be stored with `NotStorable`, and write the others.

    Raises any error that no single request causes.
    """
    refused: dict[Request, NotStorable] = {}
    while True:
        try:
            _write_each(store, accepts, ends, withdrawn, refused)
            return
        except GivenUp:
            pass  # write the transaction without the guilty request, which is in `refused` now


def _write_each(
    store: Store,
    accepts: Sequence[Accept],
    ends: Sequence[Finish | Persist],
    withdrawn: Sequence[int],
    refused: dict[Request, NotStorable],
) -> None:
    changes, finishes = [one for one in ends if type(one) is Persist], [one for one in ends if type(one) is Finish]
    requests: list[Request] = [*accepts, *changes, *finishes]
    outcomes: dict[Request, Any] = {}
    with store.transaction():
        if withdrawn:
            store.withdraw(withdrawn)
        for one in requests:
            if one not in refused:
                store.db.execute("SAVEPOINT request")
                try:
                    failpoints.point("journal.apply")
                    outcomes[one] = _write(store, one)
                except Exception as error:
                    if not is_of_a_value(error):
                        raise
                    refused[one] = _refusal(one, error)
                    if not store.db.in_transaction:
                        raise GivenUp from error
                    store.db.execute("ROLLBACK TO request")
                store.db.execute("RELEASE request")
            if one in refused:
                outcomes[one] = refused[one]
                store.finish(_failures(store, one, refused[one]))
        for accept in accepts:
            outcomes[accept] = _updated(store, outcomes[accept])
    for one, outcome in outcomes.items():
        one.outcome = outcome


def _write(store: Store, one: Request) -> AcceptedTask | TaskRow | Exception | None:
    if type(one) is Accept:
        return store.accept([one.task])[0]
    if type(one) is Persist:
        store.apply(one.changes)
    elif type(one) is Finish:
        store.finish([one.end])
    return None


def _refusal(one: Request, error: Exception) -> NotStorable:
    why = brief(error)
    if type(one) is Accept:
        what = "the task"
    elif type(one) is Finish:
        what = "the end of the task"
    else:
        assert type(one) is Persist
        what = f"a change ({', '.join(sorted({type(change).__name__ for change in one.changes}))})"
    log.error("the journal cannot store a request; only its own task fails", request=what, error=why)
    return NotStorable(f"the journal cannot store {what} ({why}); all else was stored", cause=why)


def _failures(store: Store, one: Request, error: NotStorable) -> list[TaskEnd]:
    """The ends, as failed, of the tasks whose state on disk is wrong without `one`."""
    tasks: set[int] = set()
    if type(one) is Finish and is_row_id(one.end.id):
        tasks = {one.end.id}
    elif type(one) is Persist:
        pids, tasks = dependents(one.changes)
        for pid in pids:
            tasks.update(task for (task,) in store.db.execute("SELECT task FROM processes WHERE pid = ?", (pid,)))
    outcome = encode(Failed(0, to_wire(error)))
    return [TaskEnd(number, time.time(), "failed", NotStorable.__name__, outcome) for number in sorted(tasks)]


def _updated(store: Store, outcome: Any) -> Any:
    """The outcome of an `Accept`; an earlier task with the same key may have ended in the same transaction."""
    return (store.find(outcome.id) or outcome) if type(outcome) is TaskRow else outcome
