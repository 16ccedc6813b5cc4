"""Durable processes as such: how they begin, and begin again with their pid and what was theirs; and their children.

Used by the task subsystem for the first process of a durable task, and by the replay for what that spawns. A child of a
durable process is durable if its program is. The end of any child is kept, so that it does not run again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import structlog

from ipc.codec import decode, encode
from ipc.errors import HistoryDamaged, LlmosError, MalformedFrame, to_wire
from ipc.messages import Message
from ipc.syscalls import ExitStatus, MemorySet, Register, Spawn, Subscribe, Wait
from kernel.core.event_log import EventLog
from kernel.core.mailbox import CAPACITY
from kernel.core.process import Process, Thread
from kernel.durable.commits import CommitReceipt, Commits
from kernel.durable.history import CallHistory, DurableTask, Key, history_of
from kernel.durable.mailbox import DurableMailbox
from kernel.durable.messages import DurableMessages
from kernel.durable.pending_restarts import PendingRestarts
from kernel.durable.recorded_call import declared
from kernel.gate import Gate
from kernel.journal.changes import Change, ChildEnded, PutName, PutProcess, SetPriority, SetSuspended, TaskEnded
from kernel.journal.histories import ProcessRow
from kernel.processes.lifecycle import Lifecycle
from kernel.programs.loader import Program
from kernel.supervision.links import ABNORMAL

log = structlog.get_logger("kernel.durable")


class DurableProcesses:
    """Begins them. `context` makes what the agent sees of the kernel; `stopping`: ends belong to the next life."""

    def __init__(
        self,
        gate: Gate,
        commits: Commits,
        arrivals: PendingRestarts,
        messages: DurableMessages,
        lifecycle: Lifecycle,
        context: Callable[[Process], Any],
    ) -> None:
        self._gate = gate
        self._commits = commits
        self._arrivals = arrivals
        self._messages = messages
        self._lifecycle = lifecycle
        self._process_exit = lifecycle.process_exit
        self._table = lifecycle.table
        self._programs = lifecycle.programs
        self._dispatcher = lifecycle.dispatcher
        self._context = context
        self.stopping = False

    # ---- first processes of tasks

    def new_root(self, program: Program) -> CallHistory:
        """For a task that is submitted. Its pid is in the journal with the task."""
        return self._history(self._new_pid(), DurableTask(0), program)

    def old_root(self, task: int, rows: list[ProcessRow], program: Program) -> CallHistory:
        """For a task of an earlier life."""
        tree = DurableTask(task)
        tree.rows = {row.pid: row for row in rows}
        for row in rows:
            self._messages.restore_replies(row.pid, row.replies)
        root = next(row for row in rows if not row.parent)
        history = self._history(root.pid, tree, program)
        history.restore(tree.rows.pop(root.pid))
        return history

    def start(
        self,
        parent: Process,
        program: Program,
        call: Spawn,
        stream: EventLog | None,
        attempt: int | None,
        own: CallHistory,
    ) -> int:
        """Start a durable process with the history `own`; its pid."""
        self._arrivals.release(call.name, own.pid)
        self._lifecycle.start(parent, program, call, stream, attempt, own.pid, own)
        self._begun(own, call)
        return own.pid

    def ended(self, task: int) -> None:
        """A task has ended: nothing of it is needed any more, and none of its processes will begin again."""
        self._commits.keep(TaskEnded(task))
        self._arrivals.ended(task)

    # ---- children

    async def spawn(self, process: Process, call: Spawn, key: Key) -> int:
        self._lifecycle.check(process, call)
        program = self._programs.by_name.get(call.program)
        if program is None:
            program = await asyncio.to_thread(self._programs.load, call.program)
        history = history_of(process)
        pid = self._new_pid()
        child = self._history(pid, history.tree, program) if program.durable and not call.detach else None
        self._start_child(process, program, call, pid, child)
        put = PutProcess(pid, history.tree.id, process.pid, program.name, program.version, child is not None)
        # What it has from its parent it is to have again, which may have another one by then.
        ranked = [SetPriority(process.priority, pid)] if call.priority is None else []
        self._commits.remember(pid)
        kept = self._commits.keep(put, *ranked)
        if child is not None:
            child.last = kept  # what it does follows its being on disk
        self._watch(self._table.alive[pid], process, call)
        return pid

    async def spawned(self, process: Process, call: Spawn, pid: int) -> None:
        """A child of an earlier life: it begins again, unless it had ended."""
        history = history_of(process)
        row = history.tree.rows.pop(pid, None)
        status: ExitStatus | None = None
        program = self._programs.by_name.get(call.program)
        try:
            if row is None:
                return  # it was forgotten at a checkpoint, or never came to be
            if row.status is not None:
                status = _decoded(row.status, ExitStatus)
                return
            if program is None:
                program = await asyncio.to_thread(self._programs.load, call.program)
            child = self._history(pid, history.tree, program) if row.durable else None
            if child is not None:
                child.restore(row)
            if row.priority is not None:
                call = msgspec.structs.replace(call, priority=row.priority)
            self._start_child(process, program, call, pid, child)
            self._watch(self._table.alive[pid], process, call)
        except Exception as error:
            status = ExitStatus(pid, call.program, "failed", None, to_wire(error))
        finally:
            if status is not None:
                self._remember(process, call, pid, status)
                if call.link and status.reason != "done":
                    why = f"process {pid} ({call.program}), to which it was linked, ended ({status.reason})"
                    self._process_exit.end(process, ABNORMAL, why)
            self._arrivals.came(pid)

    async def wait(self, process: Process, call: Wait, key: Key) -> ExitStatus:
        """The same as for any process; a later life may have to wait on."""
        if call.pid in self._table.alive:
            self._commits.remember(call.pid)
        status: ExitStatus = await self._gate.answer(process, call)
        return status

    def process_ended(self, process: Process) -> None:
        """Hold on to nothing of what has ended: it is remembered for a while, and knows its task."""
        if process.durable is None:
            return
        history = history_of(process)
        self._messages.process_ended(process)
        history.records = {}
        if history.tree.root is process:
            history.tree.root = None

    # ---- what clients and others do to them

    def suspended(
        self, process: Process, thread: Thread | None, suspended: bool = True
    ) -> Coroutine[Any, Any, None] | None:
        """`process` was suspended or resumed: it will be so in the next life. Returns when that is on the disk."""
        if process.durable is None or thread is not None:
            return None
        return self._kept(SetSuspended(suspended, process.pid))

    def ranked(self, process: Process, thread: Thread | None) -> Coroutine[Any, Any, None] | None:
        """`process` was given a priority, which it will have in the next life. Returns when that is on the disk."""
        if process.durable is None or thread is not None:
            return None
        return self._kept(SetPriority(process.priority, process.pid))

    # ---- inside

    def _kept(self, change: Change) -> Coroutine[Any, Any, None] | None:
        """Returns when it is on the disk. A durable caller has its call in the same transaction, and waits for that."""
        number, caller = self._commits.keep(change), asyncio.current_task()
        if isinstance(caller, Thread) and caller.process.durable is not None:
            return None
        return CommitReceipt(self._commits, number).before(None)

    def _start_child(self, process: Process, program: Program, call: Spawn, pid: int, own: CallHistory | None) -> None:
        if own is not None:
            self.start(process, program, call, None, None, own)
        else:
            self._lifecycle.start(process, program, call, None, pid=pid)

    def _begun(self, history: CallHistory, call: Spawn) -> None:
        """The process of `history` has been made, and has not run yet: give it what was its own."""
        process = self._table.alive[history.pid]
        tree, row = history.tree, history.row
        if tree.root is None:
            tree.root = process
        capacity = process.mailbox.capacity if process.mailbox is not None else CAPACITY
        box = process.mailbox = DurableMailbox(process.pid, capacity, self._commits, self._dispatcher.loop.time)
        if call.name is not None:
            self._commits.keep(PutName(call.name, process.pid))
        if row is not None:
            if row.version != history.version:
                log.warning(
                    "the code of a durable agent has changed since it began; if it now takes another way it is ended",
                    pid=process.pid,
                    program=process.program,
                    then=row.version,
                    now=history.version,
                )
            self._messages.restore_delivered(history)
            try:
                self._restore(process, box, row)
            except LlmosError as error:
                self._process_exit.finish(tree.root, "failed", error=to_wire(error))
        self._arrivals.came(process.pid)

    def _new_pid(self) -> int:
        self._table.last_pid += 1
        return self._table.last_pid

    def _history(self, pid: int, tree: DurableTask, program: Program) -> CallHistory:
        return CallHistory(pid, tree, program.version, self._context)

    def _restore(self, process: Process, box: DurableMailbox, row: ProcessRow) -> None:
        """Raises `HistoryDamaged`."""
        now = self._dispatcher.loop.time()
        for expires, envelope in row.messages:
            message = _decoded(envelope, Message)
            deadline = None if expires is None else now + expires - time.time()
            fields = (message.id, message.type, message.sender, message.recipient, message.priority)
            message = Message(*fields, message.correlation, deadline, message.body)
            try:
                box.restore(declared(process, message))
            except LlmosError as error:  # what it accepts has changed
                log.warning("a message of an earlier life is not accepted any more", pid=row.pid, error=error.message)
                box.restore(message)
            if message.correlation == message.id:
                self._messages.owe(process, message.id)
        for number in _decoded(row.pending_calls, list[int]) if row.pending_calls is not None else ():
            self._messages.owe(process, number)
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
            process.priority = row.priority
            for thread in tuple(process.threads):
                self._dispatcher.reprioritise(thread, row.priority)
        row.messages, row.memory = [], []

    def _watch(self, child: Process, parent: Process, call: Spawn) -> None:
        """Keep the end of `child`, unless it ends because all does."""

        def ended(child: Process) -> None:
            assert child.status is not None
            if not self.stopping and (call.detach or not parent.dying):
                self._commits.keep(ChildEnded(child.pid, encode(child.status)))

        child.watch(ended)

    def _remember(self, parent: Process, call: Spawn, pid: int, status: ExitStatus) -> None:
        """Let a child that ended in an earlier life be found by who waits for it."""
        ghost = Process(pid, None, status.program, {}, parent.owner, parent.priority)
        ghost.parent_pid = 0 if call.detach else parent.pid
        ghost.dying, ghost.status = status.reason, status
        self._table.alive[pid] = ghost
        self._table.bury(ghost)


def _decoded(data: bytes, kind: Any = Any) -> Any:
    """Raises `HistoryDamaged`."""
    try:
        return decode(data, kind)
    except MalformedFrame as error:
        raise HistoryDamaged(f"what the journal has of a durable process cannot be read: {error.message}") from None
