"""A call under way: what the slots of the daemon take for a sequence, and what becomes of it.

Made by the simulation when a task makes a call. The slots keep their books in it as they do in the daemon; the engine
keeps its own there, too. It decides nothing.
"""

from __future__ import annotations

from typing import Any

from ipc.syscalls import Sampling
from kernel.drivers import protocol
from kernel.models.sequence import FINISHED, QUEUED
from kernel.policy.group import SchedulingGroup
from llmosd.simulator.workload import WorkloadCall

SAMPLING = Sampling()


class SimulatedCall:
    """See `kernel.models.sequence.Sequence` for what the slots use. Times are seconds of the simulation, None before.

    `unread` tokens of its prompt are left, `made` tokens of it were made before step number `joined`, since which it
    makes one a step while it is in the batch; `credited` of them the slots have been told of.
    """

    __slots__ = (
        "away",
        "block_reasons",
        "cancelled",
        "credited",
        "critical_path",
        "end",
        "first",
        "grant",
        "group",
        "has_kv",
        "id",
        "in_driver",
        "joined",
        "lease",
        "made",
        "outcome",
        "place",
        "preemptions",
        "priority",
        "prompt",
        "since",
        "slot",
        "spec",
        "started",
        "state",
        "submitted",
        "switch_cost",
        "task",
        "tokens",
        "unread",
    )
    preemptible = True
    reader_is_behind = False
    process: Any = None

    def __init__(
        self,
        number: int,
        task: int,
        place: int,
        spec: WorkloadCall,
        group: SchedulingGroup,
        priority: int,
        critical_path: float,
        now: float,
    ) -> None:
        self.id = number
        self.task = task
        self.place = place
        self.spec = spec
        self.group = group
        self.priority = priority
        self.critical_path = critical_path
        self.prompt = spec.prompt
        self.tokens = spec.tokens
        self.state = QUEUED
        self.block_reasons: set[str] = set()
        self.lease = self.grant = self.preemptions = 0
        self.in_driver = self.cancelled = False
        self.since = 0.0
        self.switch_cost = 0.0
        self.submitted = now
        self.started: float | None = None
        self.first: float | None = None
        self.end: float | None = None
        self.outcome = ""
        # ---- of the engine
        self.unread = spec.prompt
        self.made = self.credited = 0
        self.joined = 0
        self.has_kv = False  # it has memory
        self.away = False  # its state is on disk
        self.slot = -1

    @property
    def limit(self) -> int:
        """Tokens that it may make at most from now on; 0 if it sets no bound."""
        bound = self.spec.limit
        return max(bound - self.credited, 1) if bound else 0

    @property
    def reserve(self) -> int:
        """Tokens of memory that it needs to run: a driver reserves for all that a call may make."""
        return self.prompt + (self.spec.limit or self.tokens)

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self.state == FINISHED

    def admission(self) -> protocol.ToDriver:
        """What a driver would be sent to admit it."""
        return protocol.Admit(self.id, "", SAMPLING, self.lease)
