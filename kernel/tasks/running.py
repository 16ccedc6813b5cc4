"""Running tasks: those that have not ended on the disk. They are begun as processes, ended, and their end is told.

Used by the task subsystem, and by recovery for those of earlier lives. Their processes are the lifecycle's. It asks the
journal for their ends alone: it accepts none. It tells no end that is not on the disk: while that takes nothing, the
ends wait, and so does whoever wants to know them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import structlog

from ipc.codec import encode
from ipc.errors import FrameTooLarge, LlmosError, NotEncodable, UnknownTask, to_wire
from ipc.frames import MAX_FRAME
from ipc.messages import Failed, Result, State
from ipc.syscalls import Submit, Submitted
from kernel.core.event_log import EventLog
from kernel.core.process import Process
from kernel.durable.history import CallHistory
from kernel.durable.processes import DurableProcesses
from kernel.journal.journal import Journal
from kernel.journal.records import TaskEnd
from kernel.processes.exit import final_event
from kernel.processes.lifecycle import Lifecycle
from kernel.programs.loader import Program

MOST = MAX_FRAME - 1024  # bytes of an end, as a frame holds it with what stands around it

log = structlog.get_logger("kernel.tasks")


class Task:
    """A task whose end is not on the disk yet.

    `final` is its last event, once its process has ended. Nobody sees it before it is on the disk; then `when_told` is
    called. `held_up`: the disk did not take it when first asked.
    """

    __slots__ = ("attempt", "detach", "durable", "event_log", "final", "held_up", "id", "pid", "when_told")

    def __init__(self, number: int, event_log: EventLog, detach: bool, durable: bool = False, attempt: int = 1) -> None:
        self.id = number
        self.attempt = attempt
        self.event_log = event_log
        self.detach = detach
        self.durable = durable
        self.pid = 0
        self.final: Result | Failed | None = None
        self.held_up = False
        self.when_told: Callable[[], None] = _nothing

    def submitted(self) -> Submitted:
        """What its client is answered."""
        return Submitted(id_text(self.id), self.pid, self.attempt)


class RunningTasks:
    """A table of them, by number. `stopping`: detached ones that are killed from now on belong to the next life.

    `unwritten`: how many have ended and wait for the disk. Each is a task that ran, and no task begins while the disk
    takes nothing: so there are at most as many as ran when that began, of `MOST` bytes each.
    """

    def __init__(self, journal: Journal, lifecycle: Lifecycle, durable: DurableProcesses) -> None:
        self._journal = journal
        self._lifecycle = lifecycle
        self._durable = durable
        self.tasks: dict[int, Task] = {}
        self.stopping = False
        self.unwritten = 0
        self._held_up = 0  # of those, the ones that the disk did not take when first asked
        self._all_written = asyncio.Event()
        self._all_written.set()

    def begin(
        self,
        task: Task,
        parent: Process,
        program: Program,
        call: Submit,
        attempt: int = 1,
        own: CallHistory | None = None,
    ) -> None:
        """Start the process of a task. Raises what speaks against it, which is then the end of the task."""
        try:
            if own is None:
                task.pid = self._lifecycle.start(parent, program, call, task.event_log, attempt)
            else:
                task.pid = self._durable.start(parent, program, call, task.event_log, attempt, own)
        except Exception as error:
            raise self.failed(task, "failed", error) from None
        self._lifecycle.table.alive[task.pid].watch(partial(self._process_ended, task))

    def _process_ended(self, task: Task, process: Process) -> None:
        status = process.status
        assert status is not None
        if self.stopping and task.detach and status.reason == "killed":
            return
        self._finish(task, status.reason, final_event(status))

    def failed(self, task: Task, reason: str, error: Exception) -> Exception:
        """End a task that has no process with `error`, which is returned."""
        self._finish(task, reason, Failed(0, to_wire(error)))
        return error

    async def settled(self) -> None:
        """Return when no end waits for the disk."""
        await self._all_written.wait()

    def _finish(self, task: Task, reason: str, event: Result | Failed) -> None:
        try:
            outcome = encode(event)
            if len(outcome) > MOST:
                raise FrameTooLarge(
                    f"the end of task {id_text(task.id)} has {len(outcome)} bytes, and a client can be told {MOST}: "
                    "put what is large into a shared region or a file"
                )
        except (NotEncodable, FrameTooLarge) as unfit:
            reason, event = "failed", Failed(event.pid, to_wire(unfit))
            outcome = encode(event)
        task.final = event
        name = event.error.code if isinstance(event, Failed) else ""
        if task.durable:
            self._durable.ended(task.id)
        self.unwritten += 1
        self._all_written.clear()
        self._journal.finish(TaskEnd(task.id, time.time(), reason, name, outcome), partial(self._written, task))

    def _written(self, task: Task, error: LlmosError | None) -> None:
        """The end of a task is on the disk, and is told; or the disk does not take it, and the journal tries again."""
        assert task.final is not None
        if error is not None:
            self._hold_up(task, error)
            return
        del self.tasks[task.id]
        task.event_log.finish(task.final)
        task.when_told()
        self.unwritten -= 1
        if not self.unwritten:
            self._all_written.set()
        if task.held_up:
            self._held_up -= 1
            if not self._held_up:
                log.info("the ends of tasks are on the disk, and are told")

    def _hold_up(self, task: Task, error: LlmosError) -> None:
        if not self._held_up:
            log.warning("the ends of tasks wait for the disk, and are told to nobody before", why=str(error))
        self._held_up += 1
        task.held_up = True
        task.event_log.push(State(task.pid, "ending", "the task has ended; how is told once the disk takes it"))


def _nothing() -> None:
    """What most tasks call when their end was told."""


def id_text(number: int) -> str:
    """A task's id as clients have it."""
    return f"{number:x}"


def id_number(text: str) -> int:
    """The number of a task in the journal. Raises `UnknownTask` for what can be none."""
    try:
        number = int(text, 16)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 63:
        raise UnknownTask(f"{text!r:.50} is no id of a task; `llmos history` lists those that are known", id=text[:50])
    return number
