"""A sequence: one piece of work for a model, from its system call to its end.

Made for system calls, moved along by the model runtime, ordered by a policy. What it is for is said by the classes
below it: `Generation` and `Query`. It speaks to nobody.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from ipc.errors import LlmosError
from ipc.syscalls import SequenceInfo
from kernel.core.process import Process, Thread
from kernel.dispatch.priority_inheritance import urgency
from kernel.drivers import protocol
from kernel.policy.group import SchedulingGroup

QUEUED, RUNNING, PARKED, FINISHED = "queued", "running", "parked", "finished"


class Sequence(ABC):
    """What every piece of work has, a `kernel.policy.policy.Job` among it. `resident`: the driver holds its state.

    `lease` counts the tokens it may still make by the kernel's books, `grant` those until its policy decides anew (0:
    no bound). `holds` says why it may not run now. `deaths` counts the drivers that died while it was on a slot,
    `preemptions` how often it was taken off one for another. `since`: the time from which it has been in its state.
    `switch_cost`: tokens that could be made in the time that it takes to preempt it and bring it back.
    """

    __slots__ = (
        "block_reasons",
        "cancelled",
        "critical_path",
        "deaths",
        "error",
        "grant",
        "group",
        "id",
        "in_driver",
        "lease",
        "model",
        "preemptions",
        "process",
        "since",
        "state",
        "switch_cost",
        "thread",
    )
    preemptible = True  # it runs by leases, can be parked and goes on later

    def __init__(self, sequence_id: int, process: Process, thread: Thread, model: str) -> None:
        self.id = sequence_id
        self.process = process
        self.group: SchedulingGroup = process.scheduling_group()
        self.critical_path = process.critical_path
        self.thread = thread
        self.model = model
        self.state = QUEUED
        self.in_driver = False
        self.cancelled = False
        self.block_reasons: set[str] = set()
        self.lease = self.grant = 0
        self.deaths = 0
        self.preemptions = 0
        self.switch_cost = 0.0
        self.since = 0.0
        self.error: LlmosError | None = None

    @abstractmethod
    def admission(self) -> protocol.ToDriver:
        """What tells a driver that does not know it to run it."""

    @property
    def priority(self) -> int:
        """That of its thread, or of who waits for an answer of its process, if that is higher."""
        return urgency(self.thread)

    @property
    def prompt(self) -> int:
        """Tokens that are to be read before it makes one; 0 if that is not known."""
        return 0

    @property
    def limit(self) -> int:
        """Tokens that it may make at most from now on; 0 if that is not known."""
        return 0

    @property
    def finished(self) -> bool:
        return self.state == FINISHED

    @property
    def reader_is_behind(self) -> bool:
        """Whether whoever reads what it makes has too much of that before him."""
        return False

    def finish(self, error: LlmosError | None = None) -> None:
        """End it and wake the thread that waits for it."""
        self.state, self.error = FINISHED, error
        self.thread.wake()

    def info(self, position: int) -> SequenceInfo:
        return SequenceInfo(
            self.id,
            self.process.pid,
            self.process.program,
            self.state,
            position,
            0,
            0,
            self.lease,
            self.priority,
            self.preemptions,
        )

    def ended_by(self) -> None:
        """The driver ends the wait for a sequence, and it is outside: see `kernel.core.waits`."""
        return

    def __str__(self) -> str:
        why = ", ".join(sorted(self.block_reasons))
        return f"{self.model}: {self.state}" + (f" ({why})" if why else "")
