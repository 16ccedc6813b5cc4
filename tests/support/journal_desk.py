"""A journal without a kernel: tasks to write into it, and its callbacks as awaitables.

Used by the tests of the journal and of its failures. It never runs a task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ipc.codec import encode
from ipc.errors import LlmosError
from ipc.syscalls import Submit
from kernel.journal.journal import Journal
from kernel.journal.records import AcceptedTask, TaskEnd, TaskRow
from kernel.journal.settings import FILE, JournalSettings
from kernel.journal.store import Store

# A process that accepts and ends tasks without a pause, and prints each answer of the journal, until it is killed.
VICTIM = """
import asyncio, sys, time
from pathlib import Path
from ipc.codec import encode
from ipc.syscalls import Submit
from kernel.lib import failpoints
from kernel.journal.journal import Journal
from kernel.journal.records import AcceptedTask, TaskEnd
from kernel.journal.settings import JournalSettings

async def main():
    failpoints.arm()
    journal = Journal(Path(sys.argv[1]), JournalSettings(attempts=1000))
    def ended(number):
        print("ended", number, flush=True)
    def accepted(task):
        print("accepted", task.id, flush=True)
        if task.id % 3:
            end = TaskEnd(task.id, time.time(), "done", "", encode(task.id))
            journal.finish(end, lambda error: ended(task.id))
        journal.accept(AcceptedTask("echo", "ann", None, encode(Submit("echo")), time.time()), accepted)
    for _ in range(16):
        journal.accept(AcceptedTask("echo", "ann", None, encode(Submit("echo")), time.time()), accepted)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def task(value: Any = 1, key: str | None = None, owner: str = "ann", program: str = "echo") -> AcceptedTask:
    return AcceptedTask(program, owner, key, encode(Submit(program, {"value": value})), time.time())


def end(number: int, reason: str = "done", outcome: bytes = b"result", ended: float | None = None) -> TaskEnd:
    return TaskEnd(number, time.time() if ended is None else ended, reason, "", outcome)


class Desk:
    """A journal, with its callbacks as awaitables."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.journal = Journal(folder, JournalSettings(**settings))
        self.pending: list[AcceptedTask] = []
        self.recovered = asyncio.Event()
        self.failure: asyncio.Future[LlmosError] = asyncio.get_running_loop().create_future()
        self.journal.on_pending.append(self._on_pending)
        self.journal.on_failure.append(self.failure.set_result)

    def _on_pending(self, portion: list[AcceptedTask]) -> None:
        self.pending += portion
        self.recovered.set()

    def accept(self, one: AcceptedTask) -> asyncio.Future[Any]:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.journal.accept(one, answered.set_result)
        return answered

    def finish(self, one: TaskEnd) -> asyncio.Queue[Any]:
        """The queue of the answers, of which there may be two."""
        answers: asyncio.Queue[Any] = asyncio.Queue()
        self.journal.finish(one, answers.put_nowait)
        return answers

    async def find(self, number: int) -> TaskRow | None:
        found: TaskRow | None = await self.journal.read(lambda store: store.find(number))
        return found


@asynccontextmanager
async def desk(folder: Path, **settings: Any) -> AsyncIterator[Desk]:
    opened = Desk(folder, **settings)
    try:
        yield opened
    finally:
        await opened.journal.close()


async def accepted(folder: Path, *tasks: AcceptedTask) -> list[AcceptedTask]:
    """Accept `tasks` in a run that stops in order; return them as the journal accepted them."""
    async with desk(folder) as opened:
        return list(await asyncio.gather(*map(opened.accept, tasks)))


def crash(folder: Path) -> None:
    """Mark the last run as one that did not stop in order, so that the next run takes it for a crash."""
    opened = Store(folder / FILE, "full")
    with opened.transaction():
        opened.db.execute("UPDATE stops SET clean = 0")
    opened.close()
