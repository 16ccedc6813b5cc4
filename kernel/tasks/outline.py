"""The outline of a task: the facts that an explanation needs. Made for `llmos why`; it never changes a task."""

from __future__ import annotations

import time
from typing import NamedTuple

from kernel.journal.records import AcceptedTask, TaskRow
from kernel.lib.pages import shortened
from kernel.tasks.recovery import Recovery
from kernel.tasks.running import RunningTask, id_text


class TaskOutline(NamedTuple):
    """A task. `state`: as in `TaskInfo`. `pid`: of its process, or, of a durable task that waits, in its last run.

    `reason`: why it waits. `seconds`: for how long it has waited. `retry`: seconds until the next attempt.
    `ended`: the seconds since its end, None before.
    """

    id: str
    program: str
    owner: str
    state: str
    pid: int
    reason: str = ""
    seconds: float | None = None
    retry: float | None = None
    ended: float | None = None
    error: str = ""


def of_unstarted(recovery: Recovery, accepted: AcceptedTask) -> TaskOutline | None:
    """The outline of a task that is held back or waits for its program; None for any other."""
    state = recovery.state(accepted.id)
    if state is None:
        return None
    waiting = recovery.waiting.tasks.get(accepted.id)
    return TaskOutline(
        id_text(accepted.id),
        shortened(accepted.program),
        shortened(accepted.owner),
        state.state,
        accepted.pid,
        state.detail,
        None if waiting is None else time.monotonic() - waiting.since,
        None if waiting is None else recovery.waiting.watch.seconds_left,
    )


def of_row(row: TaskRow, task: RunningTask | None) -> TaskOutline:
    """The outline of any other task; `task` is None if it is not running."""
    known = id_text(row.id), shortened(row.program), shortened(row.owner)
    if row.ended is not None:
        return TaskOutline(*known, row.reason, 0, ended=max(time.time() - row.ended, 0.0), error=shortened(row.error))
    if task is None or task.pid == 0:
        return TaskOutline(*known, "accepted", 0)
    return TaskOutline(*known, "running" if task.final is None else "ending", task.pid)
