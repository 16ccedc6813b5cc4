"""Which tasks may have made the daemon die, and in which order they restart, so that only the guilty task is given up.

The store calls `begin_run` at each start of the daemon. After two deaths in a row the suspects restart in halves: a
binary search for the task that kills the daemon (group testing; Dorfman, "The Detection of Defective Members of Large
Populations", 1943). A death counts against a task beyond `SHARED` only if the task ran alone. Nothing here starts a
task: `kernel.tasks.recovery` does.

`tasks.trial` is -1 for a task that waits because its program cannot be loaded, and 0 for a task that the run holds
back. It is 1 for a task that began, or whose file still runs, and that may have caused the death of the run. It is 2
for a task that ran through its trial in that run.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import apsw

SHARED = 2  # deaths that count against every task that was running; also the deaths after which halves restart
MOST_ATTEMPTS = 100  # with a higher limit no task is held back: the user wants each to run again and again
MARGIN = 2.0  # a trial takes this many times the time from the last restart of tasks to the death of the daemon
SHORTEST, LONGEST = 1.0, 60.0  # seconds of a trial; the time of a run includes the pause before the next start
LATER = 4.0  # a trial takes so many times longer after each death that followed all trials
LONGEST_LATER = 600.0
FORGIVEN_AFTER = 86_400.0  # seconds of a run after which the earlier deaths count against no task any more
FORGIVEN_AFTER_STOP = 600.0  # the same for a run that stopped in order: nobody waits for it in a loop of deaths


class RestartPlan(NamedTuple):
    """The restarts of a run. `crashes`: the deaths in a row before it. `held`: the group of each task that must wait.

    The tasks that are not in `held` restart at once. Each group waits until the tasks before it have run for
    `trial_seconds`, or have ended. `alone`: a single task restarts at once, and no other task may run beside it.
    """

    crashes: int = 0
    trial_seconds: float = 0.0
    held: dict[int, int] = {}
    alone: bool = False


def begin_run(db: apsw.Connection, attempts: int) -> RestartPlan:
    """Begin a run: if the previous run crashed, count the crash; then choose the tasks that restart at once.

    Count another attempt for each of them.
    """
    clean, crashes, late, started = _rows(db, "SELECT clean, crashes, late, started FROM stops")[0]
    now = time.time()
    if now - started >= (FORGIVEN_AFTER_STOP if clean else FORGIVEN_AFTER):
        # All tasks that were running lived through this time, so the deaths before it had other causes. Otherwise a
        # task that runs for months would be given up for deaths that are months apart.
        crashes = late = 0
        db.execute("UPDATE tasks SET crashes = 0, alone = 0 WHERE ended IS NULL AND trial > 0")
    isolate = attempts <= MOST_ATTEMPTS
    if clean or not isolate:
        db.execute(
            "UPDATE tasks SET attempt = attempt + (crashes + alone + ?1 * (trial > 0) < ?2), "
            "crashes = crashes + ?1 * (trial > 0), trial = 1 "
            "WHERE ended IS NULL",
            (0 if clean else 1, attempts),
        )
        _record(db, 0, 0, now)
        return RestartPlan()
    crashes += 1
    began = _rows(db, "SELECT id, trial FROM tasks WHERE ended IS NULL AND trial > 0 ORDER BY id")
    suspects = [number for number, trial in began if trial == 1]
    if not suspects:  # all were cleared, so the guilty task takes longer to kill the daemon than a trial took
        suspects = [number for number, _ in began]
        late += bool(suspects) and crashes > SHARED
    _count_crash(db, [number for number, _ in began], started, attempts)
    given_up = {number for number, _ in out_of_attempts(db, attempts)}
    pending = [
        number for (number,) in _rows(db, "SELECT id FROM tasks WHERE ended IS NULL ORDER BY id")
        if number not in given_up
    ]  # fmt: skip
    suspects = [number for number in suspects if number not in given_up] or pending
    groups = [pending] if crashes < SHARED or given_up else _groups(suspects, pending)
    db.execute("UPDATE tasks SET trial = 0 WHERE ended IS NULL")
    db.executemany("UPDATE tasks SET trial = 1, attempt = attempt + 1 WHERE id = ?", [(one,) for one in groups[0]])
    _record(db, crashes, late, now)
    held = {number: group for group, numbers in enumerate(groups) if group for number in numbers}
    return RestartPlan(crashes, _trial_seconds(now - started, late), held, crashes >= SHARED and len(groups[0]) == 1)


def out_of_attempts(db: apsw.Connection, attempts: int) -> list[tuple[int, str]]:
    """Ids and programs of the pending tasks that have reached `attempts` crashes."""
    query = "SELECT id, program FROM tasks WHERE ended IS NULL AND crashes + alone >= ?"
    return [(int(number), str(program)) for number, program in _rows(db, query, attempts)]


def _count_crash(db: apsw.Connection, began: list[int], started: float, attempts: int) -> None:
    """Count the crash for the only task that ran, or up to `SHARED` crashes for all tasks that have not been cleared.

    A crash of a task that ran alone while others were held back counts until the daemon is stable, even if the task is
    durable and makes progress in each run: the others must not wait for ever.
    """
    if len(began) == 1 and not _rows(db, "SELECT 1 FROM tasks WHERE ended >= ? LIMIT 1", started):
        others = _rows(db, "SELECT 1 FROM tasks WHERE ended IS NULL AND trial = 0 LIMIT 1")
        column = "alone" if others else "crashes"
        db.execute(f"UPDATE tasks SET {column} = {column} + 1 WHERE id = ?", (began[0],))
        return
    most = max(1, min(SHARED, attempts - 1))
    db.execute(
        "UPDATE tasks SET crashes = crashes + 1 WHERE ended IS NULL AND trial = 1 AND crashes < ?",
        (most,),
    )


def _groups(suspects: list[int], pending: list[int]) -> list[list[int]]:
    """The first half of the suspects, the second half, and all other tasks."""
    half = (len(suspects) + 1) // 2
    known = set(suspects)
    others = [number for number in pending if number not in known]
    return [suspects[:half], *(group for group in (suspects[half:], others) if group)]


def _trial_seconds(last_run: float, late: int) -> float:
    seconds = min(max(MARGIN * last_run, SHORTEST), LONGEST)
    return min(seconds * LATER**late, LONGEST_LATER)


def _record(db: apsw.Connection, crashes: int, late: int, now: float) -> None:
    db.execute("UPDATE stops SET clean = 0, crashes = ?, late = ?, started = ?", (crashes, late, now))


def _rows(db: apsw.Connection, query: str, *values: Any) -> list[Any]:
    return list(db.execute(query, values))
