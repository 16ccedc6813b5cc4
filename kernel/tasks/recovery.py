"""Recovery: restarts the tasks that a previous run of the daemon accepted and did not end.

The journal calls it with the tasks that have not ended. All of them run again from the start, attached tasks too,
because their clients lost the daemon and did not leave. It never counts attempts: the journal does.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from functools import partial

import msgspec
import structlog

from ipc.codec import decode
from ipc.errors import DeadlineExceeded, HistoryDamaged, JournalUnavailable, brief
from ipc.messages import State
from ipc.syscalls import Submit
from kernel.core.event_log import EventLog
from kernel.core.process import CLIENT, Process
from kernel.durable.processes import DurableProcesses
from kernel.journal import histories
from kernel.journal.histories import ProcessRow
from kernel.journal.journal import Journal
from kernel.journal.records import AcceptedTask
from kernel.processes.exit import RestOfDeadline, deadline_passed
from kernel.processes.lifecycle import Lifecycle
from kernel.programs.origin import without_origin
from kernel.programs.program import Program
from kernel.programs.watch import ProgramWatch
from kernel.tasks.running import RunningTask, RunningTasks, id_text
from kernel.tasks.trials import Trials
from kernel.tasks.waiting import StillLoading, WaitingTask, WaitingTasks

BATCH = 100  # tasks whose histories are read together, and that restart in one turn of the loop
LOAD_SECONDS = 5.0  # that the other tasks wait for the file of one program, which goes on loading
RETRY_SECONDS = 1.0  # between two attempts to read a history that cannot be read

log = structlog.get_logger("kernel.tasks")


class Recovery:
    """Restarts tasks in the order in which they were accepted, `BATCH` of them in each turn of the loop."""

    def __init__(
        self,
        running: RunningTasks,
        journal: Journal,
        lifecycle: Lifecycle,
        durable: DurableProcesses,
        watch: ProgramWatch,
    ) -> None:
        self._running = running
        self._journal = journal
        self._lifecycle = lifecycle
        self._durable = durable
        self._loop = asyncio.get_running_loop()
        self._pending: deque[AcceptedTask] = deque()
        self._recovery: asyncio.Task[None] | None = None
        self.trials = Trials(journal, self._enqueue)
        self.waiting = WaitingTasks(running, journal, watch, self.trials, self._load, self._check, self._enqueue)
        running.when_ended = self.trials.ended
        # The parent of the restarted processes: a client that is not in the process table.
        self._parent = Process(0, None, CLIENT, {}, owner="", priority=0, is_client=True)

    def drain(self) -> None:
        """Restart no more tasks that wait or are held back: the next run of the daemon restarts them."""
        self.trials.stop()
        self.waiting.stop()

    def stop(self) -> None:
        """Restart no more tasks."""
        self.drain()
        if self._recovery is not None:
            self._recovery.cancel()

    async def finished(self, task: int) -> None:
        """Return when `task` has restarted or ended, or when the daemon stops.

        A task whose history cannot be read restarts later.
        """
        while (running := self._running.tasks.get(task)) is not None and not running.pid and running.final is None:
            if self.trials.holds(task):
                await self.trials.released(task)
            elif self.waiting.state(task) is not None:
                await self.waiting.released(task)
            elif self._recovery is not None and not self._recovery.done():
                await asyncio.wait({self._recovery})
            else:
                return

    def state(self, task: int) -> State | None:
        """The event for a client of a task that is held back or waits for its program; None for another task."""
        return self.trials.state(task) or self.waiting.state(task)

    def why_unstarted(self, task: int) -> str | None:
        """Why `task` cannot restart now; None if it can, or has."""
        state = self.state(task)
        return None if state is None else f"{state.state}: {state.detail}"

    def find(self, task: int) -> AcceptedTask | None:
        """Task `task` if it is held back or waits for its program."""
        waiting = self.waiting.tasks.get(task)
        return self.trials.held.get(task) if waiting is None else waiting.accepted

    def without_process(self, pid: int) -> AcceptedTask | None:
        """The task that is held back or waits, and whose process had `pid` in a previous run."""
        return next((accepted for accepted in self.unstarted() if accepted.pid == pid), None) if pid else None

    def unstarted(self) -> Iterator[AcceptedTask]:
        """The tasks that are held back or wait for their programs."""
        yield from self.trials.held.values()
        yield from (task.accepted for task in self.waiting.tasks.values())

    def killed(self, task: int) -> None:
        """Task `task` has been killed before it restarted."""
        self.trials.discard(task)
        self.waiting.remove(task)

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
            new = list({accepted.program for accepted in batch} - programs.keys())
            programs |= zip(new, await asyncio.gather(*map(self._load, new)), strict=True)
            found = await self._histories([accepted.id for accepted in batch if accepted.pid])
            await self._lifecycle.table.pids.wait(len(batch))
            if self._lifecycle.draining:
                break
            waiting = []
            for accepted in batch:
                task = self._running.tasks.get(accepted.id)
                if task is None or task.final is not None:
                    continue  # a client has killed it
                program = programs[accepted.program]
                if accepted.pid and accepted.id not in found and not isinstance(program, Exception):
                    later.append(accepted)
                    continue
                waits = self._restart(accepted, program, found.get(accepted.id, []))
                if waits is not None:
                    waiting.append(waits)
                else:
                    count += 1
            self.waiting.add(waiting)
            await asyncio.sleep(0)
        self._recovery = None
        if later:
            log.warning("cannot read the histories of tasks; they restart later", tasks=len(later))
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
        """Load the program; return the error if that fails, so that only the tasks of this program wait.

        `StillLoading` if a file takes longer than `LOAD_SECONDS`: the tasks of other programs must not wait for it.
        """
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                return await self._lifecycle.programs.in_worker(partial(self._lifecycle.programs.look, name, None))
        except TimeoutError:
            return StillLoading(f"program {name} takes longer than {LOAD_SECONDS:g} s to load", program=name)
        except Exception as error:
            return error

    def _check(self, accepted: AcceptedTask, program: Program) -> None:
        """Raises an error if the task cannot start with this program."""
        self._admit(accepted, program, decode(accepted.call, Submit))

    def _admit(self, accepted: AcceptedTask, program: Program, call: Submit) -> None:
        if self._durable.has_reserved(call.name, accepted.pid):
            call = msgspec.structs.replace(call, name=None)
        self._lifecycle.admit(self._parent, program, call)

    def _restart(
        self, accepted: AcceptedTask, program: Program | Exception, rows: list[ProcessRow] | HistoryDamaged
    ) -> WaitingTask | None:
        """Run a task from the start; `rows` is its history if it is durable.

        If its program is broken, or the task cannot start for another reason that may pass, returns it with that
        reason: it waits. Otherwise an error ends it. Other tasks restart in any case.
        """
        task = self._running.tasks[accepted.id]
        task.attempt = accepted.attempt
        due = None
        try:
            call = decode(accepted.call, Submit)
            call.detach = True
            if call.deadline is not None:
                due = accepted.submitted + call.deadline, call.deadline
                left = due[0] - time.time()
                if left <= 0:
                    self._running.fail(task, "deadline", DeadlineExceeded(deadline_passed(call.deadline)))
                    return None
                call.deadline = RestOfDeadline(min(left, call.deadline), call.deadline)
            if isinstance(rows, HistoryDamaged):
                raise rows
            if isinstance(program, Exception):
                return WaitingTask(accepted, program, due)
            try:
                self._admit(accepted, program, call)
            except Exception as error:
                return WaitingTask(accepted, error, due)
            history = self._durable.restored_root(accepted.id, rows, program) if rows else None
            self._running.start(task, self._parent, program, call, accepted.attempt, history)
        except Exception as error:
            if task.final is None:
                self._running.fail(task, "failed", error)
            log.warning("could not restart a task", task=id_text(task.id), error=brief(error))
        return None
