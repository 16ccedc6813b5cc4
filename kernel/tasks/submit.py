"""The task subsystem: what clients submit. A task is begun once the journal has it, and its end is told once that has.

Its handlers are called by the gate, for clients. It never runs a task itself: those that have not ended on the disk are
the running tasks', and those of earlier lives come from recovery. An orderly stop ends what is attached, and leaves
what is detached to the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from ipc.codec import decode, encode
from ipc.errors import Killed, LlmosError, ShuttingDown, UnknownTask
from ipc.messages import Event, Missed
from ipc.syscalls import Attach, Backup, History, Submit, Submitted, TaskInfo
from kernel.core.event_log import EventLog
from kernel.core.process import Process
from kernel.core.stream import Stream
from kernel.durable.history import CallHistory as Own
from kernel.durable.processes import DurableProcesses
from kernel.gate import Gate
from kernel.journal.journal import Journal
from kernel.journal.records import Accepted, TaskRow
from kernel.processes.lifecycle import Lifecycle
from kernel.programs.loader import Program
from kernel.tasks.recovery import Recovery
from kernel.tasks.running import RunningTasks, Task, id_number, id_text

SETTLE_TIMEOUT = 5.0  # seconds that a stop waits for the disk

log = structlog.get_logger("kernel.tasks")


class Tasks:
    """Accepts tasks, runs them, and finds them again."""

    def __init__(
        self,
        journal: Journal,
        lifecycle: Lifecycle,
        gate: Gate,
        durable: DurableProcesses,
    ) -> None:
        self._journal = journal
        self._lifecycle = lifecycle
        self._durable = durable
        self._loop = asyncio.get_running_loop()
        self._running = running = RunningTasks(journal, lifecycle, durable)
        self._tasks = running.tasks
        self.recovery = Recovery(running, journal, lifecycle, durable)
        gate.register({Submit: self.submit, Attach: self.attach, History: self.history, Backup: self.backup})

    # ---- system calls

    async def submit(self, client: Process, call: Submit, stream: Stream | None = None) -> Submitted:
        self._lifecycle.check(client, call)
        program = self._lifecycle.programs.by_name.get(call.program)
        if program is None:
            program = await asyncio.to_thread(self._lifecycle.programs.load, call.program)
        self._lifecycle.admit(client, program, call)
        owner = call.owner or client.owner
        kept = msgspec.structs.replace(call, owner=owner, credit=0)
        own = self._durable.new_root(program) if call.durable or program.durable else None
        task = Accepted(call.program, owner, call.key, encode(kept), time.time())
        if own is not None:
            task.pid, task.version = own.pid, own.version
        begun: asyncio.Future[Submitted] = self._loop.create_future()
        self._journal.accept(task, partial(self._accepted, client, program, call, stream, begun, own))
        try:
            submitted = await begun
        except asyncio.CancelledError:
            # `_accepted` sees that a future is cancelled; it cannot see that nobody is left to take what is in it.
            taken = begun.done() and not begun.cancelled() and begun.exception() is None
            if taken and task.id and not call.detach:  # else it is the task of an earlier call with that key
                self._abandon(client, begun.result().pid)
            raise
        return submitted if submitted.pid else await self._once_begun(submitted)

    def attach(
        self, client: Process, call: Attach, stream: Stream | None = None
    ) -> Submitted | Coroutine[Any, Any, Submitted]:
        number = id_number(call.id)
        task = self._tasks.get(number)
        if task is not None and task.pid:
            return _join(task, stream, call)
        return self._attach_kept(number, stream, call)

    async def history(self, process: Process, call: History) -> list[TaskInfo]:
        before = None if call.before is None else id_number(call.before)
        rows: list[TaskRow] = await self._journal.read(lambda store: store.history(call.limit, before))
        return [self._info(row) for row in rows]

    async def backup(self, process: Process, call: Backup) -> int:
        size: int = await self._journal.backup(Path(call.path))
        log.info("the journal was copied", to=call.path, size=size)
        return size

    # ---- for the kernel

    def stop(self) -> None:
        """The daemon stops in order: detached tasks that are killed from now on belong to its next life."""
        self._running.stopping = self._durable.stopping = True
        self.recovery.stop()

    async def settled(self) -> None:
        """Return when what is on its way to the disk is there, and all ends are told; or the disk takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_TIMEOUT):
                await self.written_if_can_be()
                await self._running.settled()

    async def written_if_can_be(self) -> None:
        """Return when all that was asked for is on the disk, or has been refused by it."""
        with contextlib.suppress(LlmosError):  # what it cannot read it may come to write
            await self._journal.read(lambda store: None)

    async def close(self) -> None:
        """Write what can be written, and say what could not be."""
        try:
            await self._journal.close()
        finally:
            if self._running.unwritten:
                log.error(
                    "ends of tasks could not be written and were told to nobody; these run again at the next start",
                    tasks=self._running.unwritten,
                )

    @property
    def unwritten(self) -> int:
        """How many tasks have ended and wait for the disk."""
        return self._running.unwritten

    # ---- new tasks

    def _accepted(
        self,
        client: Process,
        program: Program,
        call: Submit,
        stream: Stream | None,
        begun: asyncio.Future[Submitted],
        own: Own | None,
        outcome: Accepted | TaskRow | LlmosError,
    ) -> None:
        """The journal has a task, or has one of that key, or takes none. The client may have given up meanwhile."""
        gone = begun.cancelled()
        task: Task | None = None
        try:
            if isinstance(outcome, LlmosError):
                raise outcome
            if isinstance(outcome, TaskRow):
                answer = self._rejoin(outcome, None if gone else stream)
            else:
                task = self._tasks[outcome.id] = Task(outcome.id, EventLog(stream), call.detach, own is not None)
                if own is not None:
                    own.tree.id = outcome.id
                if gone and not call.detach:
                    raise self._running.failed(task, "killed", Killed("its client abandoned it before it began"))
                self._running.begin(task, client, program, call, own=own)
                answer = task.submitted()
        except Exception as error:
            if task is not None:
                task.when_told = partial(_refuse, begun, error)  # it was accepted, and this is its end
            else:
                _refuse(begun, error)
        else:
            if not gone:
                begun.set_result(answer)

    def _abandon(self, client: Process, pid: int) -> None:
        process = self._lifecycle.table.alive.get(pid)
        if process is not None and process.parent is client:
            self._lifecycle.process_exit.end(process, "killed", "its client abandoned it")

    # ---- tasks that are there already

    def _rejoin(self, kept: TaskRow, stream: Stream | None, call: Attach | None = None) -> Submitted:
        """Show `stream` a task that was found in the journal."""
        task = self._tasks.get(kept.id)
        if task is not None:
            return _join(task, stream, call)
        if kept.ended is None:
            raise ShuttingDown(f"task {id_text(kept.id)} waits for the next start of the daemon", retry_after=5.0)
        if stream is not None:
            if call is not None and call.after is not None:
                stream.push(Missed(0, 0))  # what there was besides its end is not kept
            stream.push(decode(kept.outcome, Event))
            stream.end()
        return Submitted(id_text(kept.id), 0, kept.attempt)

    async def _attach_kept(self, number: int, stream: Stream | None, call: Attach) -> Submitted:
        """Attach to a task that has no process now, or had none yet."""
        kept: TaskRow | None = await self._journal.read(lambda store: store.find(number))
        if kept is not None and kept.ended is None and number not in self._tasks:  # it has ended since that was read
            kept = await self._journal.read(lambda store: store.find(number))
        if kept is None:
            raise UnknownTask(
                f"no task {id_text(number)}; `llmos history` lists those that are known", id=id_text(number)
            )
        submitted = self._rejoin(kept, stream, call)
        return submitted if submitted.pid else await self._once_begun(submitted)

    async def _once_begun(self, submitted: Submitted) -> Submitted:
        """The answer for a task that may be in line to be begun again: with its pid, once it has one."""
        task = self._tasks.get(id_number(submitted.id))
        if task is not None and not task.pid:
            await self.recovery.over()
        return submitted if task is None else task.submitted()

    def _info(self, row: TaskRow) -> TaskInfo:
        task = self._tasks.get(row.id)
        ending = task is not None and task.final is not None
        pid = 0 if task is None or ending or row.ended is not None else task.pid
        return TaskInfo(
            id=id_text(row.id),
            pid=pid,
            program=row.program,
            owner=row.owner,
            state=row.reason or ("ending" if ending else "running" if pid else "accepted"),
            attempt=row.attempt,
            submitted=row.submitted,
            ended=row.ended or 0.0,
            error=row.error,
        )


def _join(task: Task, stream: Stream | None, call: Attach | None = None) -> Submitted:
    if stream is not None:
        after = None if call is None else call.after
        if call is not None and after is not None and call.attempt != task.attempt:
            after = 0  # it was another life
        task.event_log.add(stream, after)
    return task.submitted()


def _refuse(begun: asyncio.Future[Submitted], error: Exception) -> None:
    if not begun.done():  # else its client gave up
        begun.set_exception(error)
