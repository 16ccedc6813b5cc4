"""Running tasks: those whose end is not on disk yet. Starts their processes, persists their ends, and reports the ends.

Used by the task subsystem, and by recovery for the tasks of a previous run. The lifecycle owns their processes. It
never accepts a task, and never reports an end that is not on disk: while the disk refuses writes, no end is
reported, and clients wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import structlog

from ipc.codec import encode
from ipc.errors import FrameTooLarge, LlmosError, NotEncodable, NotStorable, UnknownTask, to_wire
from ipc.frames import MAX_FRAME
from ipc.messages import Failed, Result, State
from ipc.syscalls import Submit, Submitted
from kernel.core.event_log import EventLog
from kernel.core.process import Process
from kernel.durable.history import CallHistory
from kernel.durable.processes import DurableProcesses
from kernel.journal.journal import Journal
from kernel.journal.records import TaskEnd
from kernel.processes.lifecycle import Lifecycle
from kernel.processes.outcome import final_event
from kernel.programs.program import Program

MAX_OUTCOME = MAX_FRAME - 1024  # bytes of an encoded final event that fits into a frame with its envelope

log = structlog.get_logger("kernel.tasks")


class RunningTask:
    """A task whose end is not on disk yet.

    `final` is its last event, once its process has ended, and `reason` how it ended. When that event is on disk, it is
    pushed to the streams, and `when_reported` is called. `delayed`: the first attempt to write it failed.
    """

    __slots__ = (
        "attempt",
        "delayed",
        "detach",
        "durable",
        "event_log",
        "final",
        "id",
        "pid",
        "reason",
        "when_reported",
    )

    def __init__(self, number: int, event_log: EventLog, detach: bool, durable: bool = False, attempt: int = 1) -> None:
        self.id = number
        self.attempt = attempt
        self.event_log = event_log
        self.detach = detach
        self.durable = durable
        self.pid = 0
        self.final: Result | Failed | None = None
        self.reason = ""
        self.delayed = False
        self.when_reported: Callable[[], None] = _nothing

    def submitted(self) -> Submitted:
        """The answer to its client."""
        return Submitted(id_text(self.id), self.pid, self.attempt)


class RunningTasks:
    """The running tasks, by number. `stopping`: no task of a previous run restarts any more.

    `unwritten` counts the ends of tasks that wait for the disk. While the disk refuses writes, no new task starts. So
    no more ends can wait than tasks ran when the disk failed, each of at most `MAX_OUTCOME` bytes.
    """

    def __init__(self, journal: Journal, lifecycle: Lifecycle, durable: DurableProcesses) -> None:
        self._journal = journal
        self._lifecycle = lifecycle
        self._durable = durable
        self.tasks: dict[int, RunningTask] = {}
        self.stopping = False
        self.unwritten = 0
        self.when_ended: Callable[[int], None] = _ignore  # the recovery watches the ends of tasks on trial
        self._delayed = 0  # the number of unwritten ends whose first write failed
        self._all_written = asyncio.Event()
        self._all_written.set()

    def start(
        self,
        task: RunningTask,
        parent: Process,
        program: Program,
        call: Submit,
        attempt: int = 1,
        history: CallHistory | None = None,
    ) -> None:
        """Start the process of a task. If that fails, end the task with the error, and raise the error."""
        try:
            if history is None:
                task.pid = self._lifecycle.start(parent, program, call, task.event_log, attempt)
            else:
                task.pid = self._durable.start(parent, program, call, task.event_log, attempt, history)
        except Exception as error:
            raise self.fail(task, "failed", error) from None
        self._lifecycle.table.alive[task.pid].watch(partial(self._process_ended, task))

    def _process_ended(self, task: RunningTask, process: Process) -> None:
        status = process.status
        assert status is not None
        process.awaited = True  # the journal has the outcome
        if process in self._durable.interrupted:
            return  # it restarts in the next run
        self._finish(task, status.reason, final_event(status))

    def fail(self, task: RunningTask, reason: str, error: Exception) -> Exception:
        """End a task that has no process: its final event reports `error`. Return `error`."""
        self._finish(task, reason, Failed(0, to_wire(error)))
        return error

    async def written(self) -> None:
        """Return when the ends of all tasks are on disk."""
        await self._all_written.wait()

    def _finish(self, task: RunningTask, reason: str, event: Result | Failed) -> None:
        """Persist the end of a task. Only its first end counts."""
        if task.final is not None:
            return
        try:
            outcome = encode(event)
            if len(outcome) > MAX_OUTCOME:
                raise FrameTooLarge(
                    f"the result of task {id_text(task.id)} has {len(outcome)} bytes; the limit is {MAX_OUTCOME}: put "
                    "large data into a shared region or a file"
                )
        except (NotEncodable, FrameTooLarge) as unfit:
            reason, event = "failed", Failed(event.pid, to_wire(unfit))
            outcome = encode(event)
        task.final, task.reason = event, reason
        name = event.error.code if isinstance(event, Failed) else ""
        if task.durable:
            self._durable.task_ended(task.id)
        self.unwritten += 1
        self._all_written.clear()
        self._journal.finish(TaskEnd(task.id, time.time(), reason, name, outcome), partial(self._written, task))

    def _written(self, task: RunningTask, error: LlmosError | None) -> None:
        """Report the end of a task, which is on disk. With `error` it is not on disk yet: the journal tries again."""
        assert task.final is not None
        if self.tasks.get(task.id) is not task:
            return  # the end was reported already
        if isinstance(error, NotStorable):  # the journal has stored this error as the end of the task
            task.final, error = Failed(task.final.pid, to_wire(error)), None
        if error is not None:
            self._delay(task, error)
            return
        del self.tasks[task.id]
        self._count_written(task)
        try:
            self.when_ended(task.id)
            task.event_log.finish(task.final)
        finally:  # also if a stream fails: the client that submitted the task waits for this
            task.when_reported()

    def _count_written(self, task: RunningTask) -> None:
        self.unwritten -= 1
        if not self.unwritten:
            self._all_written.set()
        if task.delayed:
            self._delayed -= 1
            if not self._delayed:
                log.info("the delayed ends of tasks are on disk, and have been reported")

    def _delay(self, task: RunningTask, error: LlmosError) -> None:
        if task.delayed:
            return
        if not self._delayed:
            log.warning("the ends of tasks wait for the disk, and are reported after that", why=str(error))
        self._delayed += 1
        task.delayed = True
        task.event_log.push(State(task.pid, "ending", "the task has ended; its result follows when it is on disk"))


def _nothing() -> None:
    """The default of `RunningTask.when_reported`."""


def _ignore(task: int) -> None:
    """The default of `RunningTasks.when_ended`."""


def id_text(number: int) -> str:
    """The id of a task in the form that clients use."""
    return f"{number:x}"


def id_number(text: str) -> int:
    """The number of a task in the journal. Raises `UnknownTask` if `text` cannot be an id."""
    try:
        number = int(text, 16)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 63:
        raise UnknownTask(f"{text!r:.50} is no id of a task; `llmos history` lists the tasks", id=text[:50])
    return number
