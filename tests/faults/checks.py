"""Checks after a trial: each task has one result, the same for every client, and nothing ran that the journal lacks.

Called by a trial: `over_the_socket` while the daemon runs, `on_the_disk` once it has stopped. They never change the
folder of the trial.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import apsw

from kernel.journal.settings import FILE
from llmosd import AsyncClient, LlmosError
from tests.faults.jobs import STEPS, Job, Violation, done, expected
from tests.faults.load import outcome_of

AT_ONCE = 50


async def over_the_socket(socket: Path, jobs: list[Job], model: str) -> None:
    """Ask for every task again, by its id and with its key. Raises `Violation`."""
    async with AsyncClient(socket) as llmos:
        for start in range(0, len(jobs), AT_ONCE):
            await asyncio.gather(*(_ask(llmos, job, model) for job in jobs[start : start + AT_ONCE]))


async def _ask(llmos: AsyncClient, job: Job, model: str) -> None:
    if job.given_up:
        return
    if job.id is None and job.outcome is None:
        raise Violation(f"{job} was neither acknowledged nor refused")
    if job.id is not None:
        job.ended(await _outcome(llmos, job, by_id=True))
    job.ended(await _outcome(llmos, job, by_id=False))
    allowed = expected(job, model)
    if allowed and job.outcome not in allowed:
        raise Violation(f"{job} has the outcome {job.outcome!r:.300}, not {allowed!r:.300}")


async def _outcome(llmos: AsyncClient, job: Job, *, by_id: bool) -> tuple[object, ...]:
    try:
        if by_id:
            assert job.id is not None
            task = await llmos.attach(job.id)
        else:
            options = job.options | {"key": job.key, "detach": job.detach}
            task = await llmos.submit(job.program, job.arguments, **options)
            if job.id is not None:
                job.acknowledged(task.id)
        return done(await task.result(30))
    except LlmosError as error:
        return outcome_of(error)


def on_the_disk(state: Path, lines: Path, jobs: list[Job]) -> None:
    """Look into the journal of a daemon that has stopped. Raises `Violation`."""
    if damaged := [path.name for path in state.glob("*damaged*")]:
        raise Violation(f"the daemon took the journal for damaged: {damaged}")
    db = apsw.Connection(str(state / FILE), flags=apsw.SQLITE_OPEN_READONLY)
    found = next(iter(db.execute("PRAGMA integrity_check")))[0]
    if found != "ok":
        raise Violation(f"the journal is damaged: {found}")
    rows = {key: (f"{number:x}", ended) for number, key, ended in db.execute("SELECT id, key, ended FROM tasks")}
    db.close()
    for job in jobs:
        row = rows.pop(job.key, None)
        if job.given_up and row is not None:
            raise Violation(f"{job} was refused, but is in the journal as {row[0]}")
        if not (job.given_up or row is not None or job.never_accepted):
            raise Violation(f"{job} is not in the journal")
        if row is not None and job.id not in (None, row[0]):
            raise Violation(f"{job} is in the journal as {row[0]}")
        if row is not None and row[1] is None:
            raise Violation(f"{job} has not ended in the journal")
    if rows:
        raise Violation(f"the journal has tasks that no client submitted: {list(rows)}")
    _worked(lines, jobs)


def _worked(lines: Path, jobs: list[Job]) -> None:
    """Check that each task that ran was accepted, each done task ran, and all attempts made the same text."""
    texts: dict[int, set[str]] = {}
    for line in lines.read_text().splitlines() if lines.exists() else ():
        number, _, text = line.partition(" ")
        texts.setdefault(int(number), set()).add(text)
    by_number = {job.number: job for job in jobs}
    for number, made in texts.items():
        if by_number[number].given_up:
            raise Violation(f"{by_number[number]} was refused, but has run")
        if len(made) > 1:
            raise Violation(f"attempts of {by_number[number]} made different texts: {made!r:.300}")
    for job in jobs:
        if job.program == "steps":
            _written_once(job)
        if job.program == "work" and job.outcome and job.outcome[0] == "done" and job.number not in texts:
            raise Violation(f"{job} is done, but has not run")


def _written_once(job: Job) -> None:
    """Check that the lines of a durable agent, whose tool checks call ids, are there once each and in order."""
    path = Path(job.arguments["path"])
    calls = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    wrote = [int(step) for _, step in calls]
    ended = bool(job.outcome) and job.outcome[0] == "done"
    if wrote != list(range(STEPS if ended else len(wrote))) or len({call for call, _ in calls}) < len(calls):
        raise Violation(f"{job} wrote {calls}, {'and is done' if ended else 'but is not done'}")


def summary(jobs: list[Job]) -> str:
    """The number of jobs, and how many had which outcome."""
    counts = Counter("refused" if job.given_up else str(job.outcome[0]) for job in jobs)
    return f"{len(jobs)} tasks: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
