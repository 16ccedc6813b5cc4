"""Running tasks: those that have not ended on the disk. They are begun as processes, ended, and their end is told.

Used by the task subsystem, and by recovery for those of earlier lives. Their processes are the lifecycle's. It asks the
journal for their ends alone: it accepts none.
"""

from __future__ import annotations

import time
from functools import partial

from ipc.codec import encode
from ipc.errors import LlmosError, NotEncodable, UnknownTask, to_wire
from ipc.messages import Event, Failed, Result
from ipc.syscalls import Submit, Submitted
from kernel.durable.history import History
from kernel.durable.processes import DurableProcesses
from kernel.journal.journal import Journal
from kernel.journal.records import End
from kernel.lifecycle import Lifecycle
from kernel.outcome import final_event
from kernel.process import Process, ProcessTable
from kernel.programs import Program
from kernel.relay import Relay


class Task:
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
        return Submitted(id_text(self.id), self.pid, self.attempt)


class RunningTasks:
    """A table of them, by number. `stopping`: detached ones that are killed from now on belong to the next life."""

    def __init__(self, journal: Journal, table: ProcessTable, lifecycle: Lifecycle, durable: DurableProcesses) -> None:
        self._journal = journal
        self._table = table
        self._lifecycle = lifecycle
        self._durable = durable
        self.tasks: dict[int, Task] = {}
        self.stopping = False

    def begin(
        self,
        task: Task,
        parent: Process,
        program: Program,
        call: Submit,
        attempt: int = 1,
        own: History | None = None,
    ) -> None:
        """Start the process of a task. Raises what speaks against it, which is then the end of the task."""
        try:
            if own is None:
                task.pid = self._lifecycle.start(parent, program, call, task.relay, attempt)
            else:
                task.pid = self._durable.start(parent, program, call, task.relay, attempt, own)
        except Exception as error:
            raise self.failed(task, "failed", error) from None
        self._table.alive[task.pid].watch(partial(self._process_ended, task))

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

    def _finish(self, task: Task, reason: str, event: Result | Failed) -> None:
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

    def _written(self, task: Task, error: LlmosError | None) -> None:
        """The end of a task is on the disk; or the disk does not take it now, and nobody is to wait for that."""
        assert task.final is not None
        task.relay.finish(task.final)
        task.told = True
        if error is None:
            self.tasks.pop(task.id, None)


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
