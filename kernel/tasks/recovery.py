"""Recovery: restarts the tasks that a previous run of the daemon accepted and did not end.

The journal calls it with the tasks that have not ended. All of them run again from the start, attached tasks too,
because their clients lost the daemon and did not leave. It never counts attempts: the journal does.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import partial

import structlog

from ipc.codec import decode
from ipc.errors import Busy, DeadlineExceeded, HistoryDamaged, JournalUnavailable, brief
from ipc.syscalls import Submit
from kernel.core.event_log import EventLog
from kernel.core.process import CLIENT, Process
from kernel.durable.processes import DurableProcesses
from kernel.journal import histories
from kernel.journal.histories import ProcessRow
from kernel.journal.journal import Journal
from kernel.journal.records import AcceptedTask
from kernel.processes.exit import deadline_passed
from kernel.processes.lifecycle import Lifecycle
from kernel.programs.origin import without_origin
from kernel.programs.program import Program
from kernel.tasks.running import RunningTask, RunningTasks, id_text
from kernel.tasks.trials import Trials

BATCH = 100  # tasks whose histories are read together, and that restart in one turn of the loop
RETRY_SECONDS = 1.0  # between two attempts to read a program or history that cannot be read
LOAD_SECONDS = 30.0  # that the other tasks wait for the file of one program

log = structlog.get_logger("kernel.tasks")


class Recovery:
    """Restarts tasks in the order in which they were accepted, `BATCH` of them in each turn of the loop."""

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
        self._pending: deque[AcceptedTask] = deque()
        self._recovery: asyncio.Task[None] | None = None
        self.trials = Trials(journal, self._enqueue)
        running.when_ended = self.trials.ended
        # The parent of the restarted processes: a client that is not in the process table.
        self._parent = Process(0, None, CLIENT, {}, owner="", priority=0, is_client=True)

    def stop(self) -> None:
        """Restart no more tasks."""
        self.trials.stop()
        if self._recovery is not None:
            self._recovery.cancel()

    async def finished(self, task: int) -> None:
        """Return when `task` and all others of its group have restarted.

        A task whose history cannot be read restarts later.
        """
        await self.trials.released(task)
        if self._recovery is not None:
            await asyncio.wait({self._recovery})

    def recover(self, portion: list[AcceptedTask]) -> None:
        """Add tasks that a previous run did not end. Clients can find them immediately; they restart in their turn."""
        for accepted in portion:
            self._running.tasks[accepted.id] = RunningTask(
                accepted.id, EventLog(None), True, accepted.pid != 0, accepted.attempt
            )
        self._enqueue(self.trials.hold_back(portion))

    def _enqueue(self, tasks: list[AcceptedTask]) -> None:
        self._pending.extend(tasks)
        if self._recovery is None and self._pending and not self._running.stopping:
            self._recovery = asyncio.Task(self._restart_pending(), loop=self._loop, context=without_origin())
        elif self._recovery is None and not self._running.stopping:
            self.trials.restarted(0)

    async def _restart_pending(self) -> None:
        programs: dict[str, Program | Exception] = {}
        later: list[AcceptedTask] = []
        count = 0
        while self._pending and not self._lifecycle.draining:
            batch = [self._pending.popleft() for _ in range(min(BATCH, len(self._pending)))]
            for name in {accepted.program for accepted in batch} - programs.keys():
                programs[name] = await self._load(name)
            found = await self._histories([accepted.id for accepted in batch if accepted.pid])
            await self._lifecycle.table.pids.wait(len(batch))
            if self._lifecycle.draining:
                break
            for accepted in batch:
                if isinstance(programs[accepted.program], Busy) or (accepted.pid and accepted.id not in found):
                    later.append(accepted)
                    continue
                self._restart(accepted, programs[accepted.program], found.get(accepted.id, []))
                count += 1
            await asyncio.sleep(0)
        self._recovery = None
        if later:
            log.warning("cannot read the programs or histories of tasks; they restart later", tasks=len(later))
            self._loop.call_later(RETRY_SECONDS, self._enqueue, later)
        log.info("restarted the tasks of the previous run", tasks=count)
        if not self._lifecycle.draining:
            self.trials.restarted(count)

    async def _histories(self, tasks: list[int]) -> dict[int, list[ProcessRow] | HistoryDamaged]:
        """Load the histories of durable tasks, except those that cannot be read now."""
        if not tasks:
            return {}
        try:
            found: dict[int, list[ProcessRow] | HistoryDamaged] = await self._journal.read(
                partial(histories.load, tasks=tasks)
            )
        except JournalUnavailable as error:
            if len(tasks) == 1:
                log.debug("cannot read the history of a task", task=id_text(*tasks), why=str(error))
                return {}
            found = {}
            for task in tasks:
                found |= await self._histories([task])
        return found

    async def _load(self, name: str) -> Program | Exception:
        """Load the program; return the error if that fails, so that only the tasks of this program fail.

        `Busy` if a file takes longer than `LOAD_SECONDS`: the tasks of other programs must not wait for it.
        """
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                return await self._lifecycle.programs.in_worker(partial(self._lifecycle.programs.look, name, None))
        except TimeoutError:
            return Busy(f"program {name} takes longer than {LOAD_SECONDS:g} s to load", program=name)
        except Exception as error:
            return error

    def _restart(
        self, accepted: AcceptedTask, program: Program | Exception, rows: list[ProcessRow] | HistoryDamaged
    ) -> None:
        """Run a task from the start; `rows` is its history if it is durable.

        An error ends this task only: the other tasks restart.
        """
        task = self._running.tasks[accepted.id]
        task.attempt = accepted.attempt
        try:
            call = decode(accepted.call, Submit)
            call.detach = True
            if call.deadline is not None:
                left = call.deadline - (time.time() - accepted.submitted)
                if left <= 0:
                    self._running.fail(task, "deadline", DeadlineExceeded(deadline_passed(call.deadline)))
                    return
                call.deadline = min(left, call.deadline)
            if isinstance(rows, HistoryDamaged):
                raise rows
            if isinstance(program, Exception):
                raise program
            history = self._durable.restored_root(accepted.id, rows, program) if rows else None
            self._running.start(task, self._parent, program, call, accepted.attempt, history)
        except Exception as error:
            if task.final is None:
                self._running.fail(task, "failed", error)
            log.warning("could not restart a task", task=id_text(task.id), error=brief(error))
