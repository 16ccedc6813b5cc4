"""The task subsystem: what clients submit. A task is begun once the journal has it, and its end is told once that has.

Its handlers are called by the gate, for clients. It owns the tasks that have not ended on the disk; their processes are
the lifecycle's. After the daemon died, all of them run again from the start: those that were attached, too, as their
clients lost the daemon and did not leave. An orderly stop ends what is attached, and leaves what is detached to the
next start.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from ipc.codec import decode, encode
from ipc.errors import DeadlineExceeded, Killed, LlmosError, NotEncodable, ShuttingDown, UnknownTask, to_wire
from ipc.messages import Event, Failed, Missed, Result
from ipc.syscalls import Attach, Backup, History, Submit, Submitted, TaskInfo
from kernel.durable.history import History as Own
from kernel.durable.processes import DurableProcesses
from kernel.ending import Ending
from kernel.gate import Gate
from kernel.journal import histories
from kernel.journal.histories import Row
from kernel.journal.journal import Journal
from kernel.journal.records import Accepted, End, Kept
from kernel.lifecycle import Lifecycle, final_event
from kernel.process import CLIENT, Process, ProcessTable
from kernel.programs import Program, Programs
from kernel.relay import Relay
from kernel.stream import Stream

SETTLE_TIMEOUT = 5.0  # seconds that a stop waits for the disk
AT_ONCE = 100  # tasks of an earlier life that are begun in one turn of the loop

log = structlog.get_logger("kernel.tasks")


class _Task:
    """A task that has not ended on the disk. `final` is its last event, once its process has ended; `told`: to all."""

    __slots__ = ("attempt", "detach", "durable", "final", "id", "pid", "relay", "told")

    def __init__(self, number: int, relay: Relay, detach: bool, durable: bool = False, attempt: int = 1) -> None:
        self.id = number
        self.attempt = attempt
        self.relay = relay
        self.detach = detach
        self.durable = durable
        self.pid = 0
        self.final: Event | None = None
        self.told = False

    def submitted(self) -> Submitted:
        """What its client is answered."""
        return Submitted(_text(self.id), self.pid, self.attempt)


class Tasks:
    """Accepts tasks, runs them, and finds them again."""

    def __init__(
        self,
        journal: Journal,
        table: ProcessTable,
        lifecycle: Lifecycle,
        ending: Ending,
        programs: Programs,
        gate: Gate,
        durable: DurableProcesses,
    ) -> None:
        self._journal = journal
        self._table = table
        self._lifecycle = lifecycle
        self._ending = ending
        self._programs = programs
        self._durable = durable
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[int, _Task] = {}
        self._stopping = False
        self._pending: deque[Accepted] = deque()  # of earlier lives
        self._recovery: asyncio.Task[None] | None = None
        # In whose name they are begun: a client that nobody sees.
        self._nobody = Process(0, None, CLIENT, {}, owner="", priority=0, is_client=True)
        journal.on_pending = self._recover
        gate.register({Submit: self.submit, Attach: self.attach, History: self.history, Backup: self.backup})

    # ---- system calls

    async def submit(self, client: Process, call: Submit, stream: Stream | None = None) -> Submitted:
        self._lifecycle.check(client, call)
        program = self._programs.by_name.get(call.program)
        if program is None:
            program = await asyncio.to_thread(self._programs.load, call.program)
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
            if begun.done() and not begun.cancelled() and begun.exception() is None and not call.detach:
                self._abandon(client, begun.result().pid)
            raise
        return submitted if submitted.pid else await self._once_begun(submitted)

    def attach(
        self, client: Process, call: Attach, stream: Stream | None = None
    ) -> Submitted | Coroutine[Any, Any, Submitted]:
        number = _number(call.id)
        task = self._tasks.get(number)
        if task is not None and task.pid:
            return _join(task, stream, call)
        return self._attach_kept(number, stream, call)

    async def history(self, process: Process, call: History) -> list[TaskInfo]:
        before = None if call.before is None else _number(call.before)
        rows: list[Kept] = await self._journal.read(lambda store: store.history(call.limit, before))
        return [self._info(row) for row in rows]

    async def backup(self, process: Process, call: Backup) -> int:
        size: int = await self._journal.backup(Path(call.path))
        log.info("the journal was copied", to=call.path, size=size)
        return size

    # ---- for the kernel

    def stop(self) -> None:
        """The daemon stops in order: detached tasks that are killed from now on belong to its next life."""
        self._stopping = self._durable.stopping = True
        if self._recovery is not None:
            self._recovery.cancel()

    async def settled(self) -> None:
        """Return when all ends so far have been told, or could not be written; or the disk takes too long."""
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT):
                await self._journal.read(lambda store: None)
        except (LlmosError, TimeoutError) as error:
            log.warning("the ends of tasks were not written", error=str(error) or "the disk does not answer")

    async def close(self) -> None:
        await self._journal.close()

    # ---- new tasks

    def _accepted(
        self,
        client: Process,
        program: Program,
        call: Submit,
        stream: Stream | None,
        begun: asyncio.Future[Submitted],
        own: Own | None,
        outcome: Accepted | Kept | LlmosError,
    ) -> None:
        """The journal has a task, or has one of that key, or takes none. The client may have given up meanwhile."""
        gone = begun.cancelled()
        try:
            if isinstance(outcome, LlmosError):
                raise outcome
            if isinstance(outcome, Kept):
                answer = self._rejoin(outcome, None if gone else stream)
            else:
                task = self._tasks[outcome.id] = _Task(outcome.id, Relay(stream), call.detach, own is not None)
                if own is not None:
                    own.tree.id = outcome.id
                if gone and not call.detach:
                    raise self._failed(task, "killed", Killed("its client abandoned it before it began"))
                self._begin(task, client, program, call, own=own)
                answer = task.submitted()
        except Exception as error:
            if not gone:
                begun.set_exception(error)
        else:
            if not gone:
                begun.set_result(answer)

    def _begin(
        self,
        task: _Task,
        parent: Process,
        program: Program,
        call: Submit,
        attempt: int = 1,
        own: Own | None = None,
    ) -> None:
        """Start the process of a task. Raises what speaks against it, which is then the end of the task."""
        try:
            if own is None:
                task.pid = self._lifecycle.start(parent, program, call, task.relay, attempt)
            else:
                task.pid = self._durable.start(parent, program, call, task.relay, attempt, own)
        except Exception as error:
            raise self._failed(task, "failed", error) from None
        self._table.alive[task.pid].watch(partial(self._process_ended, task))

    def _abandon(self, client: Process, pid: int) -> None:
        process = self._table.alive.get(pid)
        if process is not None and process.parent is client:
            self._ending.end(process, "killed", "its client abandoned it")

    # ---- ends

    def _process_ended(self, task: _Task, process: Process) -> None:
        status = process.status
        assert status is not None
        if self._stopping and task.detach and status.reason == "killed":
            return
        self._finish(task, status.reason, final_event(status))

    def _failed(self, task: _Task, reason: str, error: Exception) -> Exception:
        """End a task that has no process with `error`, which is returned."""
        self._finish(task, reason, Failed(0, to_wire(error)))
        return error

    def _finish(self, task: _Task, reason: str, event: Result | Failed) -> None:
        try:
            outcome = encode(event)
        except NotEncodable as unfit:
            reason, event = "failed", Failed(event.pid, to_wire(unfit))
            outcome = encode(event)
        task.final = event
        name = event.error.code if isinstance(event, Failed) else ""
        if task.durable:
            self._durable.ended(task.id)
        self._journal.finish(End(task.id, time.time(), reason, name, outcome), partial(self._written, task))

    def _written(self, task: _Task, error: LlmosError | None) -> None:
        """The end of a task is on the disk; or the disk does not take it now, and nobody is to wait for that."""
        assert task.final is not None
        task.relay.finish(task.final)
        task.told = True
        if error is None:
            self._tasks.pop(task.id, None)

    # ---- tasks that are there already

    def _rejoin(self, kept: Kept, stream: Stream | None, call: Attach | None = None) -> Submitted:
        """Show `stream` a task that was found in the journal."""
        task = self._tasks.get(kept.id)
        if task is not None:
            return _join(task, stream, call)
        if kept.ended is None:
            raise ShuttingDown(f"task {_text(kept.id)} waits for the next start of the daemon", retry_after=5.0)
        if stream is not None:
            if call is not None and call.after is not None:
                stream.push(Missed(0, 0))  # what there was besides its end is not kept
            stream.push(decode(kept.outcome, Event))
            stream.end()
        return Submitted(_text(kept.id), 0, kept.attempt)

    async def _attach_kept(self, number: int, stream: Stream | None, call: Attach) -> Submitted:
        """Attach to a task that has no process now, or had none yet."""
        kept: Kept | None = await self._journal.read(lambda store: store.find(number))
        if kept is not None and kept.ended is None and number not in self._tasks:  # it has ended since that was read
            kept = await self._journal.read(lambda store: store.find(number))
        if kept is None:
            raise UnknownTask(f"no task {_text(number)}; `llmos history` lists those that are known", id=_text(number))
        submitted = self._rejoin(kept, stream, call)
        return submitted if submitted.pid else await self._once_begun(submitted)

    async def _once_begun(self, submitted: Submitted) -> Submitted:
        """The answer for a task that may be in line to be begun again: with its pid, once it has one."""
        task = self._tasks.get(_number(submitted.id))
        if task is not None and not task.pid and self._recovery is not None:
            await asyncio.wait({self._recovery})
        return submitted if task is None else task.submitted()

    def _info(self, row: Kept) -> TaskInfo:
        task = self._tasks.get(row.id)
        pid = 0 if task is None or row.ended is not None else task.pid
        return TaskInfo(
            id=_text(row.id),
            pid=pid,
            program=row.program,
            owner=row.owner,
            state=row.reason or ("running" if pid else "accepted"),
            attempt=row.attempt,
            submitted=row.submitted,
            ended=row.ended or 0.0,
            error=row.error,
        )

    # ---- earlier lives

    def _recover(self, portion: list[Accepted]) -> None:
        """Tasks that an earlier daemon accepted and did not end. They are known at once, and begun in their turn."""
        for accepted in portion:
            self._tasks[accepted.id] = _Task(accepted.id, Relay(None), True, accepted.pid != 0, accepted.attempt)
        self._pending.extend(portion)
        if self._recovery is None and self._pending and not self._stopping:
            self._recovery = asyncio.Task(self._begin_pending(), loop=self._loop)

    async def _begin_pending(self) -> None:
        programs: dict[str, Program | Exception] = {}
        count = 0
        while self._pending and not self._lifecycle.draining:
            accepted = self._pending.popleft()
            name = accepted.program
            if name not in programs:
                programs[name] = await self._load(name)
            rows: list[Row] = []
            if accepted.pid:
                rows = await self._journal.read(partial(histories.load, task=accepted.id))
            self._begin_again(accepted, programs[name], rows)
            count += 1
            if not count % AT_ONCE:
                await asyncio.sleep(0)
        self._recovery = None
        log.info("tasks of an earlier life are begun again", tasks=count)

    async def _load(self, name: str) -> Program | Exception:
        """The program, or what stands against it: for its own tasks, and no others."""
        try:
            return await asyncio.to_thread(self._programs.load, name)
        except Exception as error:
            return error

    def _begin_again(self, accepted: Accepted, program: Program | Exception, rows: list[Row]) -> None:
        """Run a task from the start; a durable one with `rows`, which are what it did. Whatever is wrong with it is its
        own end, and harms no other."""
        task = self._tasks[accepted.id]
        try:
            call = decode(accepted.call, Submit)
            call.detach = True
            if call.deadline is not None:
                left = call.deadline - (time.time() - accepted.submitted)
                if left <= 0:
                    why = f"not done within its deadline of {call.deadline} s"
                    self._failed(task, "deadline", DeadlineExceeded(why))
                    return
                call.deadline = min(left, call.deadline)
            if isinstance(program, Exception):
                raise program
            own = self._durable.old_root(accepted.id, rows, program) if rows else None
            self._begin(task, self._nobody, program, call, accepted.attempt, own)
        except Exception as error:
            if task.final is None:
                self._failed(task, "failed", error)
            log.warning("a task could not be begun again", task=_text(task.id), error=str(error))


def _join(task: _Task, stream: Stream | None, call: Attach | None = None) -> Submitted:
    if stream is not None:
        after = None if call is None else call.after
        if call is not None and after is not None and call.attempt != task.attempt:
            after = 0  # it was another life
        task.relay.add(stream, after)
        if task.told and task.final is not None:
            task.relay.finish(task.final)
    return task.submitted()


def _text(number: int) -> str:
    """A task's id as clients have it."""
    return f"{number:x}"


def _number(text: str) -> int:
    """The number of a task in the journal. Raises `UnknownTask` for what can be none."""
    try:
        number = int(text, 16)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 63:
        raise UnknownTask(f"{text!r:.50} is no id of a task; `llmos history` lists those that are known", id=text[:50])
    return number
