"""A call under way: the stand-in for a sequence in the daemon's lease table and policies.

Made by the simulation when a task makes a call. The lease table stores the state of the call in this object, as it does
in a sequence of the daemon; the engine stores its own state there, too. It decides nothing.
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
    """One call; `kernel.models.sequence.Sequence` explains the attributes that the lease table uses.

    Times are in seconds of the simulation, and None until they are known. `unread`: tokens of the prompt that are still
    to be read. `made`: tokens made before step number `joined_step`; from that step on, while the call is in the batch,
    it makes one token per step. `charged`: tokens that were reported to the lease table. `place`: its index in the
    calls of its task.
    """

    __slots__ = (
        "block_reasons",
        "cancelled",
        "charged",
        "critical_path",
        "end",
        "first",
        "grant",
        "group",
        "has_kv",
        "id",
        "in_driver",
        "joined_step",
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
        "swapped_out",
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
        self.started: float | None = None  # when it first got a slot
        self.first: float | None = None  # when its first token was made
        self.end: float | None = None
        self.outcome = ""
        # ---- state of the engine
        self.unread = spec.prompt
        self.made = self.charged = 0
        self.joined_step = 0
        self.has_kv = False  # whether it has KV memory
        self.swapped_out = False  # whether its KV is on disk
        self.slot = -1  # the number of its slot, -1 for none

    @property
    def limit(self) -> int:
        """The most tokens that it may still make; 0 for no bound."""
        bound = self.spec.limit
        return max(bound - self.charged, 1) if bound else 0

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV memory that it needs to run: as in a driver, for its prompt and all tokens that it may make."""
        return self.prompt + (self.spec.limit or self.tokens)

    @property
    def finished(self) -> bool:
        """Whether the call has ended."""
        return self.state == FINISHED

    def admission(self) -> protocol.ToDriver:
        """The message that admits it to a driver."""
        return protocol.Admit(self.id, "", SAMPLING, self.lease)
