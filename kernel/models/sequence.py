"""A sequence: one piece of work for a model, from its system call to its end.

`calls.py` creates it, the model runtime runs it, and a policy orders it. `Generation` and `Query` are its two kinds.
It never sends a message to a driver.
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
    """The fields that all sequences share. A policy sees a sequence as a `kernel.policy.policy.Job`.

    `state` is `PARKED` while block reasons keep the sequence off the slots, even if it never had one. A preempted
    sequence is `QUEUED`. `in_driver`: the driver knows the sequence. `lease`: tokens that are left of the lease by the
    kernel's count. `grant`: tokens that are left until the policy decides again (0: no bound). `block_reasons`: why it
    may not run now. `deaths` counts the drivers that died while it held a slot, `preemptions` how often it lost its
    slot to another sequence. `since`: when it entered its state. `switch_cost`: tokens that its slot could make in the
    time that it takes to preempt the sequence and bring it back.
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
        """The priority of its thread, or that of a caller which waits for a reply of its process, if higher."""
        return effective_priority(self.thread)

    @property
    def prompt(self) -> int:
        """Tokens that the driver must prefill before it can make a new one; 0 if unknown."""
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
        """End the sequence, and wake the thread that waits for it."""
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
