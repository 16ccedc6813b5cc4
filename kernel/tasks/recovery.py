"""Recovery: tasks that an earlier daemon accepted and did not end are begun again, some in each turn of the loop.

Called by the journal with what it finds as it is opened. After the daemon died, all of them run again from the start:
those that were attached, too, as their clients lost the daemon and did not leave. It never counts attempts: the journal
does.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import partial

import structlog

from ipc.codec import decode
from ipc.errors import DeadlineExceeded, JournalUnavailable
from ipc.syscalls import Submit
from kernel.core.event_log import EventLog
from kernel.core.process import CLIENT, Process
from kernel.durable.processes import DurableProcesses
from kernel.journal import histories
from kernel.journal.histories import ProcessRow
from kernel.journal.journal import Journal
from kernel.journal.records import Accepted
from kernel.processes.lifecycle import Lifecycle
from kernel.programs.loader import Program
from kernel.tasks.running import RunningTasks, Task, id_text

AT_ONCE = 100  # tasks of an earlier life that are read together, and begun in one turn of the loop
AGAIN = 1.0  # seconds after which what could not be read is read again

log = structlog.get_logger("kernel.tasks")


class Recovery:
    """Begins them in the order of their acceptance."""

    def __init__(
        self,
        running: RunningTasks,
        journal: Journal,
        lifecycle: Lifecycle,
        durable: DurableProcesses,
    ) -> None:
        self._running = running
        self._journal = journal
        self._lifecycle = lifecycle
        self._durable = durable
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Accepted] = deque()
        self._recovery: asyncio.Task[None] | None = None
        # In whose name they are begun: a client that nobody sees.
        self._nobody = Process(0, None, CLIENT, {}, owner="", priority=0, is_client=True)

    def stop(self) -> None:
        """Begin no more."""
        if self._recovery is not None:
            self._recovery.cancel()

    async def over(self) -> None:
        """Return when all have been begun that will be."""
        if self._recovery is not None:
            await asyncio.wait({self._recovery})

    def recover(self, portion: list[Accepted]) -> None:
        """Tasks that an earlier daemon accepted and did not end. They are known at once, and begun in their turn."""
        for accepted in portion:
            self._running.tasks[accepted.id] = Task(
                accepted.id, EventLog(None), True, accepted.pid != 0, accepted.attempt
            )
        self._line_up(portion)

    def _line_up(self, tasks: list[Accepted]) -> None:
        self._pending.extend(tasks)
        if self._recovery is None and self._pending and not self._running.stopping:
            self._recovery = asyncio.Task(self._begin_pending(), loop=self._loop)

    async def _begin_pending(self) -> None:
        programs: dict[str, Program | Exception] = {}
        unread: list[Accepted] = []
        count = 0
        while self._pending and not self._lifecycle.draining:
            some = [self._pending.popleft() for _ in range(min(AT_ONCE, len(self._pending)))]
            for name in {accepted.program for accepted in some} - programs.keys():
                programs[name] = await self._load(name)
            found = await self._histories([accepted.id for accepted in some if accepted.pid])
            if self._lifecycle.draining:
                break
            for accepted in some:
                if accepted.pid and accepted.id not in found:
                    unread.append(accepted)
                    continue
                self._begin_again(accepted, programs[accepted.program], found.get(accepted.id, []))
                count += 1
            await asyncio.sleep(0)
        self._recovery = None
        if unread:
            log.warning("what tasks did cannot be read; they are begun later", tasks=len(unread))
            self._loop.call_later(AGAIN, self._line_up, unread)
        log.info("tasks of an earlier life are begun again", tasks=count)

    async def _histories(self, tasks: list[int]) -> dict[int, list[ProcessRow]]:
        """What durable tasks did, without those of which that cannot be read now."""
        if not tasks:
            return {}
        try:
            found: dict[int, list[ProcessRow]] = await self._journal.read(partial(histories.load, tasks=tasks))
        except JournalUnavailable as error:
            if len(tasks) == 1:
                log.debug("what a task did cannot be read", task=id_text(*tasks), why=str(error))
                return {}
            found = {}
            for task in tasks:
                found |= await self._histories([task])
        return found

    async def _load(self, name: str) -> Program | Exception:
        """The program, or what stands against it: for its own tasks, and no others."""
        try:
            return await asyncio.to_thread(self._lifecycle.programs.load, name)
        except Exception as error:
            return error

    def _begin_again(self, accepted: Accepted, program: Program | Exception, rows: list[ProcessRow]) -> None:
        """Run a task from the start, a durable one with `rows`, its history.

        If anything is wrong with the task, it ends alone and harms no other.
        """
        task = self._running.tasks[accepted.id]
        try:
            call = decode(accepted.call, Submit)
            call.detach = True
            if call.deadline is not None:
                left = call.deadline - (time.time() - accepted.submitted)
                if left <= 0:
                    why = f"not done within its deadline of {call.deadline} s"
                    self._running.failed(task, "deadline", DeadlineExceeded(why))
                    return
                call.deadline = min(left, call.deadline)
            if isinstance(program, Exception):
                raise program
            own = self._durable.old_root(accepted.id, rows, program) if rows else None
            self._running.begin(task, self._nobody, program, call, accepted.attempt, own)
        except Exception as error:
            if task.final is None:
                self._running.failed(task, "failed", error)
            log.warning("a task could not be begun again", task=id_text(task.id), error=str(error))
