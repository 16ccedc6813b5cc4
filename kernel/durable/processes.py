"""Starts durable processes and their children, and restarts them with the pids and the state of the previous run.

Used by the task subsystem for the first process of a durable task, and by the replay for the children of durable
processes. A child is durable if its program is durable and the child is not detached. It never starts a child again
whose end is on disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import structlog

from ipc.codec import decode, encode
from ipc.errors import HistoryDamaged, LlmosError, MalformedFrame, NotStorable, to_wire
from ipc.messages import Message
from ipc.syscalls import ExitStatus, MemorySet, Register, Spawn, Subscribe, Wait
from kernel.core.event_log import EventLog
from kernel.core.process import Process, Thread
from kernel.durable.child_programs import ChildPrograms
from kernel.durable.commits import CommitReceipt, Commits
from kernel.durable.history import CallHistory, CallKey, DurableTask, history_of
from kernel.durable.mailbox import DurableMailbox
from kernel.durable.messages import DurableMessages
from kernel.durable.pending_restarts import PendingRestarts
from kernel.durable.recorded_call import declared
from kernel.gate import Gate
from kernel.journal.changes import (
    Change,
    ChildEnded,
    PutName,
    PutProcess,
    SetPriority,
    SetSuspended,
    TaskEnded,
    dependents,
)
from kernel.journal.histories import ProcessRow
from kernel.processes.lifecycle import Lifecycle
from kernel.programs.program import Program
from kernel.supervision.links import ABNORMAL

log = structlog.get_logger("kernel.durable")


class DurableProcesses:
    """`context` makes an agent's context. `stopping`: the daemon stops, so the progress of generations stays.

    `interrupted`: the processes that the stop of the daemon ended. Their ends are not persisted: they run again later.
    """

    def __init__(
        self,
        gate: Gate,
        commits: Commits,
        pending_restarts: PendingRestarts,
        messages: DurableMessages,
        lifecycle: Lifecycle,
        context: Callable[[Process], Any],
        programs: ChildPrograms,
    ) -> None:
        self._gate = gate
        self._commits = commits
        self._pending_restarts = pending_restarts
        self._messages = messages
        self._lifecycle = lifecycle
        self._process_exit = lifecycle.process_exit
        self._table = lifecycle.table
        self._dispatcher = lifecycle.dispatcher
        self._context = context
        self._programs = programs
        self.stopping = False
        commits.when_not_storable = self._end_dependents
        self.interrupted: set[Process] = set()

    # ---- first processes of tasks

    def new_root(self, program: Program) -> CallHistory:
        """Make the history of the first process of a new task. Its pid is new; the journal stores it with the task."""
        return self._history(self._table.pids.take(), DurableTask(0), program)

    def restored_root(self, task: int, rows: list[ProcessRow], program: Program) -> CallHistory:
        """Make the history of the first process of a task from `rows`; load the replies for all processes in `rows`."""
        durable_task = DurableTask(task)
        durable_task.rows = {row.pid: row for row in rows}
        for row in rows:
            self._messages.load_replies(row.pid, row.replies)
        root = next(row for row in rows if not row.parent)
        history = self._history(root.pid, durable_task, program)
        history.restore(durable_task.rows.pop(root.pid))
        return history

    def start(
        self,
        parent: Process,
        program: Program,
        call: Spawn,
        stream: EventLog | None,
        attempt: int | None,
        history: CallHistory,
    ) -> int:
        """Start a durable process with `history`; return its pid."""
        self._pending_restarts.release_name(call.name, history.pid)
        self._lifecycle.start(parent, program, call, stream, attempt, history.pid, history)
        self._set_up(history, call)
        return history.pid

    def has_reserved(self, name: str | None, pid: int) -> bool:
        """Whether `name` is reserved for process `pid`, which is yet to restart."""
        return name is not None and self._pending_restarts.names.get(name) == pid

    def task_ended(self, task: int) -> None:
        """Delete all rows of a task that has ended; none of its processes will restart."""
        self._commits.persist(TaskEnded(task))
        self._pending_restarts.remove_task(task)

    # ---- children

    async def spawn(self, process: Process, call: Spawn, key: CallKey) -> int:
        self._lifecycle.check(process, call)
        program = self._lifecycle.find(process, call.program) or await self._lifecycle.load(process, call.program)
        if not self._table.pids.ready:
            await self._table.pids.wait()
        history = history_of(process)
        pid = self._table.pids.take()
        child = self._history(pid, history.task, program) if program.durable and not call.detach else None
        self._start_child(process, program, call, pid, child)
        put = PutProcess(pid, history.task.id, process.pid, program.name, program.version, child is not None)
        # Persist an inherited priority: when the child restarts, its parent may have another priority.
        inherited = [SetPriority(process.priority, pid)] if call.priority is None else []
        self._commits.reserve_pid(pid)
        number = self._commits.persist(put, *inherited)
        if child is not None:
            child.last_commit = number  # the effects of the child wait for this commit
        self._persist_end(self._table.alive[pid], process, call)
        return pid

    async def restore_spawn(self, process: Process, call: Spawn, pid: int) -> None:
        """Restart a child of a previous run, or restore its exit status if it has ended."""
        history = history_of(process)
        row = history.task.rows.pop(pid, None)
        status: ExitStatus | None = None
        try:
            if row is None:
                return  # the row was deleted by a checkpoint, or was never written
            if row.status is not None:
                status = _decoded(row.status, ExitStatus)
                return
            if row.priority is not None:
                call = msgspec.structs.replace(call, priority=row.priority)
            reserved = self.has_reserved(call.name, pid)
            program = await self._programs.load(process, call, name_is_reserved=reserved)
            child = self._history(pid, history.task, program) if row.durable else None
            if child is not None:
                child.restore(row)
            self._start_child(process, program, call, pid, child)
            self._persist_end(self._table.alive[pid], process, call)
        except Exception as error:
            status = ExitStatus(pid, call.program, "failed", None, to_wire(error))
        finally:
            if status is not None:
                self._restore_ended(process, call, pid, status)
                if call.link and status.reason != "done":
                    why = f"process {pid} ({call.program}), to which it was linked, ended ({status.reason})"
                    self._process_exit.end(process, ABNORMAL, why)
            self._pending_restarts.remove(pid)

    async def wait(self, process: Process, call: Wait, key: CallKey) -> ExitStatus:
        """Wait as any process does; reserve the pid, because the wait may continue in a later run of the daemon."""
        if call.pid in self._table.alive:
            self._commits.reserve_pid(call.pid)
        status: ExitStatus = await self._gate.answer(process, call)
        return status

    def process_ended(self, process: Process) -> None:
        """Free the memory of the history, because the process table retains an ended process for a while."""
        if process.durable is None:
            return
        history = history_of(process)
        self._messages.process_ended(process)
        history.records = {}
        if history.task.root is process:
            history.task.root = None

    # ---- changes by clients and other processes

    def suspended(
        self, process: Process, thread: Thread | None, suspended: bool = True
    ) -> Coroutine[Any, Any, None] | None:
        """Persist that `process` was suspended or resumed. Returns a coroutine if the caller must await the commit."""
        if process.durable is None or thread is not None:
            return None
        return self._persist(SetSuspended(suspended, process.pid))

    def priority_set(self, process: Process, thread: Thread | None) -> Coroutine[Any, Any, None] | None:
        """Persist the new priority of `process`. Returns a coroutine if the caller must await the commit."""
        if process.durable is None or thread is not None:
            return None
        return self._persist(SetPriority(process.priority, process.pid))

    # ---- inside

    def _persist(self, change: Change) -> Coroutine[Any, Any, None] | None:
        """Persist `change`. A durable caller gets None: it waits for the record of its call, in the same commit."""
        number, caller = self._commits.persist(change), asyncio.current_task()
        if isinstance(caller, Thread) and caller.process.durable is not None:
            return None
        return CommitReceipt(self._commits, number).answer_after_commit(None)

    def _end_dependents(self, changes: Sequence[Change], error: NotStorable) -> None:
        """End the tasks that could not be replayed without `changes`: in the journal, they have ended already."""
        for pid in dependents(changes)[0]:
            process = self._table.alive.get(pid)
            while process is not None and process.durable is None:
                process = process.parent
            root = None if process is None else history_of(process).task.root
            if root is not None:
                self._process_exit.finish(root, "failed", error=to_wire(error))

    def _start_child(
        self, process: Process, program: Program, call: Spawn, pid: int, history: CallHistory | None
    ) -> None:
        if history is not None:
            self.start(process, program, call, None, None, history)
        else:
            self._lifecycle.start(process, program, call, None, pid=pid)

    def _set_up(self, history: CallHistory, call: Spawn) -> None:
        """Give the process of `history` a durable mailbox, and its state of the previous run, before its first step."""
        process = self._table.alive[history.pid]
        task, row = history.task, history.row
        if task.root is None:
            task.root = process
        limited = process.mailbox
        box = process.mailbox = DurableMailbox(process.pid, self._commits, self._dispatcher.loop.time)
        if limited is not None:
            box.capacity, box.byte_capacity = limited.capacity, limited.byte_capacity
        if call.name is not None:
            self._commits.persist(PutName(call.name, process.pid))
        if row is not None:
            if row.version != history.version:
                log.warning(
                    "the code of a durable agent has changed; its task fails if its calls differ from the records",
                    pid=process.pid,
                    program=process.program,
                    then=row.version,
                    now=history.version,
                )
            self._messages.load_delivered(history)
            try:
                self._restore(process, box, row)
            except LlmosError as error:
                self._process_exit.finish(task.root, "failed", error=to_wire(error))
        self._pending_restarts.remove(process.pid)

    def _history(self, pid: int, task: DurableTask, program: Program) -> CallHistory:
        return CallHistory(pid, task, program.version, self._context)

    def _restore(self, process: Process, box: DurableMailbox, row: ProcessRow) -> None:
        """Raises `HistoryDamaged`."""
        now = self._dispatcher.loop.time()
        for expires, envelope in row.messages:
            message = _decoded(envelope, Message)
            deadline = None if expires is None else now + expires - time.time()
            fields = (message.id, message.type, message.sender, message.recipient, message.priority)
            message = Message(*fields, message.correlation, deadline, message.body)
            try:
                message = declared(process, message)
            except LlmosError as error:  # the program now accepts other messages
                log.warning(
                    "the program does not accept a message of the previous run; the message stays unconverted",
                    pid=row.pid,
                    error=error.message,
                )
            box.restore(message)
            self._messages.count_restored(box, message)
            if message.correlation == message.id:
                self._messages.add_pending_call(process, message.id)
        for number in _decoded(row.pending_calls, list[int]) if row.pending_calls is not None else ():
            self._messages.add_pending_call(process, number)
        make = self._gate.handler
        for key, value in row.memory:
            make(MemorySet)(process, MemorySet(key, _decoded(value)))
        for name in row.names:
            make(Register)(process, Register(name))
        for pattern in row.subscriptions:
            make(Subscribe)(process, Subscribe(pattern))
        if row.suspended:
            self._dispatcher.hold(process)
        if row.priority is not None:
            process.priority = process.lowest_priority = row.priority
            for thread in tuple(process.threads):
                self._dispatcher.reprioritise(thread, row.priority)
        row.messages, row.memory = [], []

    def _persist_end(self, child: Process, parent: Process, call: Spawn) -> None:
        """Persist the end of `child`, unless it ends because its parent ends or the daemon stops."""

        def ended(child: Process) -> None:
            assert child.status is not None
            if child not in self.interrupted and (call.detach or not parent.dying):
                self._commits.persist(ChildEnded(child.pid, encode(child.status)))

        child.watch(ended)

    def _restore_ended(self, parent: Process, call: Spawn, pid: int, status: ExitStatus) -> None:
        """Put a child that ended in a previous run into the process table, so that a wait for it finds its status."""
        stand_in = Process(pid, None, status.program, {}, parent.owner, parent.priority)
        stand_in.parent_pid = 0 if call.detach else parent.pid
        stand_in.dying, stand_in.status = status.reason, status
        self._table.alive[pid] = stand_in
        self._table.bury(stand_in)


def _decoded(data: bytes, kind: Any = Any) -> Any:
    """Raises `HistoryDamaged`."""
    try:
        return decode(data, kind)
    except MalformedFrame as error:
        raise HistoryDamaged(f"cannot decode the journal's data of a durable process: {error.message}") from None
