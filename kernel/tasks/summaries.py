"""Reads the rows of `llmos history`, with short texts of their arguments and results.

The task subsystem runs it on the journal's thread, so that a long list delays neither the loop nor a commit for long.
It never reads a long value in full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kernel.journal.records import TaskRow
from kernel.tasks import short_form

if TYPE_CHECKING:
    from kernel.journal.store import Store

MOST_TEXT = 2 * 1024 * 1024  # bytes of short texts in one list, so that the answer fits into a frame


class TaskSummary(NamedTuple):
    """A row of the journal, with the pid of the process that ended the task (0: none) and the short texts."""

    row: TaskRow
    last_pid: int
    arguments: str
    result: str


def read(store: Store, limit: int, before: int | None) -> list[TaskSummary]:
    """The last `limit` tasks with ids below `before`, newest first. After `MOST_TEXT`, rows have no short texts."""
    found = []
    left = MOST_TEXT
    for row, call, outcome in store.history_with_values(limit, before, short_form.BEGINNING):
        pid, result = short_form.result(outcome)
        arguments = short_form.arguments(call) if left > 0 else ""
        result = result if left > 0 else ""
        left -= len(arguments.encode()) + len(result.encode())
        found.append(TaskSummary(row, pid, arguments, result))
    return found
