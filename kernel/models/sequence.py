"""A sequence: one piece of work for a model, from its system call to its end.

The model calls create it, the model runtime runs it, and a policy orders it. `Generation` and `Query` are its two
kinds. It never sends a message to a driver.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from ipc.errors import LlmosError
from ipc.syscalls import SequenceInfo
from kernel.core.process import Process, Thread
from kernel.dispatch.priority_inheritance import effective_priority
from kernel.drivers import protocol
from kernel.policy.group import SchedulingGroup

QUEUED, RUNNING, PARKED, FINISHED = "queued", "running", "parked", "finished"


class Sequence(ABC):
    """The fields that all sequences share. A policy sees them as a `kernel.policy.policy.Job`.

    `in_driver`: the driver knows it. `lease`: tokens that it may still make by the kernel's count; `grant`: those until
    the policy decides again (0: no bound). `block_reasons`: why it may not run now. `deaths` counts the drivers that
    died while it held a slot, `preemptions` how often it lost its slot to another sequence. `since`: when it entered
    its state. `switch_cost`: tokens that could be made in the time that it takes to preempt it and bring it back.
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
    preemptible = True  # it runs by leases, and can be parked and continue later

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
        """The message that admits the sequence to a driver, which then runs it."""

    @property
    def priority(self) -> int:
        """The priority of its thread, or of a caller that waits for a reply of its process, if that is higher."""
        return effective_priority(self.thread)

    @property
    def prompt(self) -> int:
        """Tokens that the driver must read before the first new one; 0 if unknown."""
        return 0

    @property
    def limit(self) -> int:
        """The most tokens that it may still make; 0 if unknown."""
        return 0

    @property
    def finished(self) -> bool:
        return self.state == FINISHED

    @property
    def reader_is_behind(self) -> bool:
        """Whether the reader of its tokens has too many of them unread."""
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
        """None: the driver ends this wait, and is no thread of the kernel. See `kernel.core.waits`."""
        return

    def __str__(self) -> str:
        why = ", ".join(sorted(self.block_reasons))
        return f"{self.model}: {self.state}" + (f" ({why})" if why else "")
