"""Ends tasks by their ids, and by their pids while they have no process.

The gate calls the handler of `KillTask`, and `kernel.processes.control` asks for processes that it does not find. A
running task ends with its process; this module never ends a process of any other kind.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ipc.errors import Killed, ShuttingDown, UnknownTask, to_wire
from ipc.syscalls import ExitStatus, KillTask
from kernel.core.process import Process
from kernel.gate import Gate
from kernel.journal.journal import Journal
from kernel.journal.records import TaskRow
from kernel.processes.lifecycle import Lifecycle
from kernel.tasks.recovery import Recovery
from kernel.tasks.running import RunningTask, RunningTasks, id_number, id_text


class TaskKiller:
    """Handles `KillTask`. `flush` returns when the journal has written all that was requested.

    `killed` does so for a process that has ended, and raises `ShuttingDown` if its task runs again.
    """

    def __init__(
        self,
        running: RunningTasks,
        recovery: Recovery,
        journal: Journal,
        lifecycle: Lifecycle,
        gate: Gate,
        flush: Callable[[], Coroutine[Any, Any, None]],
        killed: Callable[[Process], Coroutine[Any, Any, None]],
    ) -> None:
        self._running = running
        self._recovery = recovery
        self._journal = journal
        self._lifecycle = lifecycle
        self._process_exit = lifecycle.process_exit
        self._flush = flush
        self._killed = killed
        gate.register({KillTask: self.kill_task})

    async def kill_task(self, client: Process, call: KillTask) -> str:
        number = id_number(call.id)
        task = self._running.tasks.get(number)
        if task is None:
            return await self._ended(number)
        process = self._lifecycle.table.alive.get(task.pid)
        if process is not None:
            self._process_exit.end(process, "killed", _by(client))
            if process.status is None:
                await self._process_exit.until_ended(process, None)
            await self._killed(process)
        else:
            if task.final is None:
                self._kill_unstarted(task, client)
            await self._flush()
        row = await self._row(number)
        return row.reason or task.reason  # not on disk: the disk refuses writes, and the journal tries again

    def kill_process(self, caller: Process, pid: int) -> Coroutine[Any, Any, ExitStatus] | None:
        """End the task whose process had `pid` in a previous run and has not restarted; None if there is none."""
        accepted = self._recovery.without_process(pid)
        if accepted is None:
            return None
        error = self._kill_unstarted(self._running.tasks[accepted.id], caller)
        return self._status(ExitStatus(pid, accepted.program, "killed", None, to_wire(error)))

    def _kill_unstarted(self, task: RunningTask, caller: Process) -> Exception:
        error = self._running.fail(task, "killed", Killed(_by(caller)))
        self._recovery.killed(task.id)
        return error

    async def _status(self, status: ExitStatus) -> ExitStatus:
        await self._flush()
        return status

    async def _ended(self, number: int) -> str:
        """How a task ended that is not running. Raises `UnknownTask`, `ShuttingDown`."""
        row = await self._row(number)
        if row.ended is None:
            text = id_text(number)
            raise ShuttingDown(f"task {text} restarts in the next run of the daemon; kill it then", retry_after=5.0)
        return row.reason

    async def _row(self, number: int) -> TaskRow:
        row: TaskRow | None = await self._journal.read(lambda store: store.find(number))
        if row is None:
            raise UnknownTask(f"no task {id_text(number)}; `llmos history` lists the tasks", id=id_text(number))
        return row


def _by(caller: Process) -> str:
    return f"killed by process {caller.pid} ({caller.program})"
