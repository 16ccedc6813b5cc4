"""The load: clients that submit without end, through every death of the daemon, and record every answer.

Run by a trial. A client that lost the daemon returns by the id of the task, or with its key. Some give up on purpose,
and some leave in the middle.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from contextlib import suppress
from pathlib import Path

from llmosd import (
    AgentFailed,
    AsyncClient,
    Busy,
    ConnectionLost,
    DeadlineExceeded,
    JournalUnavailable,
    Killed,
    LlmosError,
    NoDaemon,
    ShuttingDown,
    UnknownProcess,
)
from tests.faults.jobs import Job, Violation, done, make, may_be_repaired

CLIENTS = 6
AT_ONCE = 4  # jobs of one client
PAUSE = 0.01  # seconds before a client that lost the daemon, or was refused, tries again
LEAVES = 0.02  # share of jobs on a connection after which its client leaves
GIVES_UP = 0.5  # share of refusals after which no client tries again


class Load:
    """`jobs` by number; at most `most` of them. An outcome that a client received is final, whatever the disk does."""

    def __init__(self, socket: Path, lines: Path, model: str, seed: int, most: int) -> None:
        self.jobs: dict[int, Job] = {}
        self.over = False  # no new jobs
        self._stopping = False  # attached tasks end with the daemon
        self._socket = socket
        self._lines = lines
        self._model = model
        self._most = most
        self._chance = random.Random(f"load {seed}")
        self._open: deque[Job] = deque()  # submitted, and not known to have ended
        self._newest = 0  # the highest id that was acknowledged

    async def run(self) -> None:
        """Returns when no job is left, once it is `over`. Raises the first `Violation`."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client())

    def set_stopping(self, stopping: bool) -> None:
        """The daemon stops in order, or has stopped: tasks attached by now or meanwhile end with it."""
        self._stopping = stopping
        for job in self.jobs.values():
            job.left = job.left or job.outcome is None

    async def _client(self) -> None:
        while not (self.over and all(job.outcome or job.given_up for job in self.jobs.values())):
            try:
                async with AsyncClient(self._socket) as llmos, asyncio.TaskGroup() as group:
                    current: set[Job] = set()
                    for _ in range(AT_ONCE):
                        group.create_task(self._lane(llmos, current))
            except* (TimeoutError, NoDaemon, ConnectionLost, ShuttingDown):
                pass
            await asyncio.sleep(PAUSE)

    async def _lane(self, llmos: AsyncClient, current: set[Job]) -> None:
        """Follow one job after another over this connection. `current`: all jobs that are under way on it."""
        while (job := self._next()) is not None:
            current.add(job)
            try:
                await self._follow(llmos, job, current)
            finally:
                current.discard(job)
                if job.outcome is None and not job.given_up:
                    self._open.append(job)

    def _next(self) -> Job | None:
        if self._open:
            return self._open.popleft()
        if self.over or len(self.jobs) >= self._most:
            return None
        number = len(self.jobs) + 1
        job = self.jobs[number] = make(number, self._chance, self._lines, self._model)
        job.left = self._stopping
        return job

    async def _follow(self, llmos: AsyncClient, job: Job, current: set[Job]) -> None:
        """Submit `job`, or find it again, and wait for its outcome. Raises `ConnectionLost` and `Violation`."""
        before, is_new = self._newest, job.submissions == 0
        try:
            if job.id is not None and self._chance.random() < 0.5:
                task = await llmos.attach(job.id)
            else:
                job.submissions += 1
                options = job.options | {"key": job.key, "detach": job.detach}
                task = await llmos.submit(job.program, job.arguments, **options)
        except (JournalUnavailable, Busy) as error:
            first = job.submissions == 1 and job.id is None
            job.given_up = first and error.data.get("certain", True) and self._chance.random() < GIVES_UP
            await asyncio.sleep(PAUSE)
            return
        except (AgentFailed, Killed, DeadlineExceeded) as error:
            if may_be_repaired(job, error):
                await asyncio.sleep(PAUSE)
                return
            job.ended(outcome_of(error))  # it ended as soon as it began
            return
        job.acknowledged(task.id)
        if is_new and int(task.id, 16) <= before:
            raise Violation(f"{job} has an id that is not above {before:x}, which was acknowledged before")
        self._newest = max(self._newest, int(task.id, 16))
        if job.program == "waiting" and "deadline" not in job.options and task.pid:
            with suppress(UnknownProcess):
                await llmos.kill(task.pid)
        if self._chance.random() < LEAVES and not self.over:
            await _leave(llmos, current)
        try:
            outcome = done(await task.result())
        except (ConnectionLost, NoDaemon):
            raise
        except Busy:
            return  # the daemon stops
        except LlmosError as error:
            outcome = outcome_of(error)
        job.ended(outcome)


async def _leave(llmos: AsyncClient, current: set[Job]) -> None:
    """Leave, as a client that dies does: tasks attached to it end, whether acknowledged or not."""
    for job in current:
        job.left = True
    await llmos.close()
    raise ConnectionLost("the client leaves on purpose")


def outcome_of(error: LlmosError) -> tuple[str, ...]:
    """How a task failed, reduced to the part that is the same each time."""
    name = type(error).__name__
    return (name, error.message) if name == "AgentFailed" else (name,)
