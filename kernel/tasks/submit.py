"""The task subsystem: accepts tasks from clients, and starts each when it is on disk.

The gate calls its handlers, for clients. An orderly stop of the daemon ends attached tasks, and leaves detached tasks
to the next start. It never runs a task itself: `kernel.tasks.running` does, and `kernel.tasks.recovery` restarts the
tasks of a previous run.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from ipc.codec import decode, encode
from ipc.errors import HistoryDamaged, Killed, LlmosError, MalformedFrame, ShuttingDown, UnknownTask, to_wire
from ipc.messages import Event, Failed, Missed, Result, State
from ipc.syscalls import Attach, Backup, History, Submit, Submitted, TaskInfo
from kernel.core.event_log import EventLog
from kernel.core.process import Process
from kernel.core.stream import Stream
from kernel.durable.history import CallHistory, history_of
from kernel.durable.processes import DurableProcesses
from kernel.gate import Gate
from kernel.journal.journal import Journal
from kernel.journal.records import AcceptedTask, TaskRow
from kernel.lib.pages import shortened
from kernel.lib.validation import check_text
from kernel.processes.lifecycle import Lifecycle, before_deadline
from kernel.programs.program import Program
from kernel.programs.watch import ProgramWatch
from kernel.tasks import outline, summaries
from kernel.tasks.kill import TaskKiller
from kernel.tasks.outline import TaskOutline
from kernel.tasks.recovery import Recovery
from kernel.tasks.running import RunningTask, RunningTasks, id_number, id_text
from kernel.tasks.summaries import TaskSummary

MAX_PATH = 4096  # characters
SETTLE_TIMEOUT = 5.0  # seconds that a stop waits for the disk

log = structlog.get_logger("kernel.tasks")


class Tasks:
    """Handles `Submit`, `Attach`, `History` and `Backup`."""

    def __init__(
        self,
        journal: Journal,
        lifecycle: Lifecycle,
        gate: Gate,
        durable: DurableProcesses,
        watch: ProgramWatch,
    ) -> None:
        self._journal = journal
        self._lifecycle = lifecycle
        self._durable = durable
        self._loop = asyncio.get_running_loop()
        self._running = running = RunningTasks(journal, lifecycle, durable)
        self._tasks = running.tasks
        self.recovery = Recovery(running, journal, lifecycle, durable, watch)
        self.killer = TaskKiller(running, self.recovery, journal, lifecycle, gate, self.flush, self.killed)
        gate.register({Submit: self.submit, Attach: self.attach, History: self.history, Backup: self.backup})

    # ---- system calls

    async def submit(self, client: Process, call: Submit, stream: Stream | None = None) -> Submitted:
        async with before_deadline(call):
            if self.recovery.trials.alone:
                if stream is not None:
                    _announce(stream, self.recovery.trials.state_of_new())
                await self.recovery.trials.quiet()
            self._lifecycle.check(client, call)
            program = self._lifecycle.find(client, call.program) or await self._lifecycle.load(client, call.program)
        self._lifecycle.admit(client, program, call)
        owner = call.owner or client.owner
        stored = msgspec.structs.replace(call, owner=owner, credit=0)
        history = self._durable.new_root(program) if call.durable or program.durable else None
        task = AcceptedTask(call.program, owner, call.key, encode(stored), time.time())
        if call.owner is None and client.program != owner:
            task.former_owner = client.program
        if history is not None:
            task.pid, task.version = history.pid, history.version
        self._lifecycle.table.pids.cover(self._journal.waiting + 1)  # on disk before the processes start
        started: asyncio.Future[Submitted] = self._loop.create_future()
        self._journal.accept(task, partial(self._accepted, client, program, call, stream, started, history))
        try:
            submitted = await started
        except asyncio.CancelledError:
            # `_accepted` handles a future that was cancelled before, but not a cancellation after it set the result.
            taken = started.done() and not started.cancelled() and started.exception() is None
            # `task.id` is 0 if the journal found the task of an earlier call with the same key.
            if taken and task.id and not call.detach:
                self._abandon(client, started.result().pid)
            raise
        return submitted if submitted.pid else await self._once_started(submitted)

    def attach(
        self, client: Process, call: Attach, stream: Stream | None = None
    ) -> Submitted | Coroutine[Any, Any, Submitted]:
        number = id_number(call.id)
        task = self._tasks.get(number)
        if task is not None and task.pid:
            return _join(task, stream, call)
        return self._attach_from_journal(number, stream, call)

    async def history(self, process: Process, call: History) -> list[TaskInfo]:
        before = None if call.before is None else id_number(call.before)
        read = partial(summaries.read, limit=min(call.limit, History.page), before=before)
        found: list[TaskSummary] = await self._journal.read(read)
        return [self._info(summary) for summary in found]

    async def backup(self, process: Process, call: Backup) -> int:
        check_text(call.path, "the path of a backup", MAX_PATH)
        size: int = await self._journal.backup(Path(call.path))
        log.info("backed up the journal", to=call.path, size=size)
        return size

    # ---- for the kernel

    def drain(self) -> None:
        """Begin no more tasks that wait or are held back: the next run of the daemon restarts them."""
        self.recovery.drain()

    def stop(self) -> None:
        """Prepare for the stop of the daemon: no task restarts any more, and the progress of generations stays."""
        self._running.stopping = self._durable.stopping = True
        self.recovery.stop()

    def interrupt(self, processes: Iterable[Process]) -> None:
        """The daemon stops, and is about to end `processes`. Those of detached tasks run again in its next run.

        A process that is dying already, because somebody killed it, does not.
        """
        roots = {task.pid for task in self._tasks.values() if task.detach}
        self._durable.interrupted.update(
            process for process in processes if not process.dying and _root_of(process) in roots
        )

    async def killed(self, process: Process) -> None:
        """A client killed `process`, which has ended: return when this is on disk.

        Raises `ShuttingDown` if the stop of the daemon ended the process before, so that it runs again.
        """
        if process in self._durable.interrupted:
            raise ShuttingDown(
                f"process {process.pid} ({process.program}) was interrupted, because the daemon stops, and its task "
                "restarts in the next run of the daemon; kill it then",
                retry_after=5.0,
            )
        await self.flush()

    async def wait_for_ends(self) -> None:
        """Return when all changes are on disk and all ends of tasks are reported, or after `SETTLE_TIMEOUT`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_TIMEOUT):
                await self.flush()
                await self._running.written()

    async def flush(self) -> None:
        """Return when every change that was requested has been written or refused by the disk."""
        with contextlib.suppress(LlmosError):  # a read that fails has also waited for the earlier changes
            await self._journal.read(lambda store: None)

    async def close(self) -> None:
        """Close the journal, and log how many ends of tasks are not on disk."""
        try:
            await self._journal.close()
        finally:
            if self._running.unwritten:
                log.error(
                    "the ends of tasks are not on disk and were not reported; these tasks run again at the next start",
                    tasks=self._running.unwritten,
                )

    @property
    def unwritten(self) -> int:
        """The number of tasks that have ended, and whose ends wait for the disk."""
        return self._running.unwritten

    def unstarted(self) -> Iterator[TaskOutline]:
        """The tasks that are held back or wait for their programs."""
        for accepted in self.recovery.unstarted():
            if (found := outline.of_unstarted(self.recovery, accepted)) is not None:
                yield found

    def without_process(self, pid: int) -> TaskOutline | None:
        """The task that has not restarted, and whose process had `pid` in a previous run; None if there is none."""
        accepted = self.recovery.without_process(pid)
        return None if accepted is None else outline.of_unstarted(self.recovery, accepted)

    async def outline(self, text: str) -> TaskOutline:
        """The outline of the task with the id `text`. Raises `UnknownTask`."""
        number = id_number(text)
        row: TaskRow | None = await self._journal.read(lambda store: store.find(number))
        if row is None:
            raise UnknownTask(f"no task {id_text(number)}; `llmos history` lists the tasks", id=id_text(number))
        accepted = self.recovery.find(number)
        found = None if accepted is None else outline.of_unstarted(self.recovery, accepted)
        return found or outline.of_row(row, self._tasks.get(number))

    def unwritten_end(self, pid: int) -> RunningTask | None:
        """The task of process `pid` if the process has ended and the end is not on disk yet, else None."""
        return next((task for task in self._tasks.values() if task.pid == pid and task.final is not None), None)

    # ---- new tasks

    def _accepted(
        self,
        client: Process,
        program: Program,
        call: Submit,
        stream: Stream | None,
        started: asyncio.Future[Submitted],
        history: CallHistory | None,
        outcome: AcceptedTask | TaskRow | LlmosError,
    ) -> None:
        """Handle the journal's answer: the new task, an earlier task with the same key, or an error.

        If the client has given up meanwhile, `started` is cancelled.
        """
        gone = started.cancelled()
        task: RunningTask | None = None
        try:
            if isinstance(outcome, LlmosError):
                raise outcome
            if isinstance(outcome, TaskRow):
                answer = self._rejoin(outcome, None if gone else stream)
            else:
                task = RunningTask(outcome.id, EventLog(stream), call.detach, history is not None)
                self._tasks[outcome.id] = task
                if history is not None:
                    history.task.id = outcome.id
                if gone and not call.detach:
                    raise self._running.fail(task, "killed", Killed("its client gave up before the task began"))
                self._running.start(task, client, program, call, history=history)
                answer = task.submitted()
        except Exception as error:
            if task is not None:
                # The task was accepted, so the error is its end, and must be on disk before the client gets it.
                task.when_reported = partial(_refuse, started, error)
            else:
                _refuse(started, error)
        else:
            if not gone:
                started.set_result(answer)

    def _abandon(self, client: Process, pid: int) -> None:
        process = self._lifecycle.table.alive.get(pid)
        if process is not None and process.parent is client:
            self._lifecycle.process_exit.end(process, "killed", "its client gave the task up")

    # ---- tasks that exist already

    def _rejoin(self, row: TaskRow, stream: Stream | None, call: Attach | None = None) -> Submitted:
        """Attach `stream` to a task that was found in the journal."""
        task = self._tasks.get(row.id)
        if task is not None:
            state = self.recovery.state(row.id)
            if stream is not None and state is not None:
                _announce(stream, state)
            return _join(task, stream, call)
        if row.ended is None:
            raise ShuttingDown(
                f"task {id_text(row.id)} restarts in the next run of the daemon; attach to it then", retry_after=5.0
            )
        if stream is not None:
            if call is not None and call.after is not None:
                stream.push(Missed(0, 0))  # only the final event of an ended task is stored
            stream.push(self._final_event(row))
            stream.end()
        return Submitted(id_text(row.id), 0, row.attempt)

    def _final_event(self, row: TaskRow) -> Result | Failed:
        """The stored last event of a task, without the crash report of an earlier run, which is gone."""
        try:
            event: Result | Failed = decode(row.outcome, Event)
        except MalformedFrame as error:
            event = Failed(0, to_wire(HistoryDamaged(f"the outcome of this task cannot be decoded: {error.message}")))
        if isinstance(event, Failed) and self._lifecycle.table.pids.is_earlier(event.pid):
            data = {name: value for name, value in event.error.data.items() if name != "crash"}
            event = Failed(event.pid, msgspec.structs.replace(event.error, data=data))
        return event

    async def _attach_from_journal(self, number: int, stream: Stream | None, call: Attach) -> Submitted:
        """Attach to a task that has no process."""
        row: TaskRow | None = await self._journal.read(lambda store: store.find(number))
        if row is not None and row.ended is None and number not in self._tasks:  # the task ended after this read
            row = await self._journal.read(lambda store: store.find(number))
        if row is None:
            raise UnknownTask(f"no task {id_text(number)}; `llmos history` lists the tasks", id=id_text(number))
        submitted = self._rejoin(row, stream, call)
        return submitted if submitted.pid else await self._once_started(submitted)

    async def _once_started(self, submitted: Submitted) -> Submitted:
        """The answer to a client of a task. If the task is yet to restart, wait until it has a pid."""
        task = self._tasks.get(id_number(submitted.id))
        if task is not None and not task.pid:
            await self.recovery.finished(task.id)
        return submitted if task is None else task.submitted()

    def _info(self, summary: TaskSummary) -> TaskInfo:
        row = summary.row
        task = self._tasks.get(row.id)
        ending = task is not None and task.final is not None
        pid = 0 if task is None or ending or row.ended is not None else task.pid
        waits = None if task is None or ending else self.recovery.state(row.id)
        return TaskInfo(
            id=id_text(row.id),
            pid=pid,
            program=shortened(row.program),
            owner=shortened(row.owner),
            state=row.reason or ("ending" if ending else "running" if pid else waits.state if waits else "accepted"),
            attempt=row.attempt if task is None or waits is None else task.attempt,
            submitted=row.submitted,
            ended=row.ended or 0.0,
            error=shortened(row.error),
            last_pid=summary.last_pid or (0 if task is None else task.pid) or (0 if waits is None else waits.pid),
            arguments=summary.arguments,
            result=summary.result,
            waits_for="" if waits is None else waits.detail,
        )


def _root_of(process: Process) -> int:
    """The pid of the first process of the durable task to which `process` belongs; else its own pid."""
    for one in (process, process.parent):
        if one is not None and one.durable is not None:
            root = history_of(one).task.root
            return process.pid if root is None else root.pid
    return process.pid


def _announce(stream: Stream, state: State) -> None:
    """Send `state` now: the answer, which grants the credit of the client, follows only when the task begins."""
    stream.grant(1)
    stream.push(state)


def _join(task: RunningTask, stream: Stream | None, call: Attach | None = None) -> Submitted:
    if stream is not None:
        after = None if call is None else call.after
        if call is not None and after is not None and call.attempt != task.attempt:
            after = 0  # the numbers of events belong to an attempt: show all of this one
        task.event_log.add(stream, after)
    return task.submitted()


def _refuse(started: asyncio.Future[Submitted], error: Exception) -> None:
    if not started.done():  # otherwise the client gave up
        started.set_exception(error)
