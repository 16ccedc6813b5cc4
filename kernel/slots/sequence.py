"""A sequence: one generation, from its system call to its last token.

Made by the resource manager, moved along by the model runtime. It holds every token and every character, so that it
can go on in another driver process when its own dies.
"""

from __future__ import annotations

from ipc.errors import LlmosError
from ipc.syscalls import Generate, Sampling, SequenceInfo
from kernel.process import Process
from kernel.thread import Thread

QUEUED, RUNNING, PARKED, FINISHED = "queued", "running", "parked", "finished"


class Sequence:
    """What one generation is and how far it has come. `resident`: the driver holds its state.

    `lease` counts the tokens it may still make by the kernel's books. `holds` says why it may not run now.
    """

    __slots__ = (
        "call",
        "cancelled",
        "deaths",
        "emit",
        "error",
        "holds",
        "id",
        "ids",
        "lease",
        "model",
        "process",
        "prompt",
        "prompt_ids",
        "reason",
        "released",
        "resident",
        "sampling",
        "state",
        "text",
        "thread",
    )

    def __init__(
        self, sequence_id: int, process: Process, thread: Thread, model: str, request: Generate, sampling: Sampling
    ) -> None:
        self.id = sequence_id
        self.process = process
        self.thread = thread
        self.model = model
        self.prompt = request.prompt
        self.sampling = sampling
        self.emit = request.emit
        self.call = process.generations = process.generations + 1
        self.state = QUEUED
        self.resident = False
        self.cancelled = False
        self.holds: set[str] = set()
        self.lease = 0
        self.deaths = 0
        self.prompt_ids: list[int] | None = None
        self.ids: list[int] = []
        self.text: list[str] = []
        self.released = 0
        self.reason = ""
        self.error: LlmosError | None = None

    @property
    def finished(self) -> bool:
        return self.state == FINISHED

    def finish(self, reason: str, error: LlmosError | None = None) -> None:
        """End it and wake the thread that waits for it."""
        self.state, self.reason, self.error = FINISHED, reason, error
        self.thread.wake()

    def info(self, position: int) -> SequenceInfo:
        return SequenceInfo(
            self.id,
            self.process.pid,
            self.process.program,
            self.state,
            position,
            len(self.prompt_ids or ()),
            len(self.ids),
            self.lease,
        )

    def ended_by(self) -> None:
        """The driver ends the wait for a sequence, and it is outside: see `kernel.waiting`."""

    def __str__(self) -> str:
        if self.state == RUNNING:
            return f"{self.model}: {len(self.ids)} tokens"
        why = ", ".join(sorted(self.holds))
        return f"{self.model}: {self.state}" + (f" ({why})" if why else "")
