"""A bounded log of the generations that ended last, from which `llmos record` makes a trace of the workload.

The active sequences of each model add to it; the system call `FinishedCalls` reads it. It never writes to disk.
"""

from __future__ import annotations

import itertools
from collections import deque

from ipc.syscalls import FinishedCall, FinishedCalls
from kernel.core.process import Process
from kernel.gate import Gate
from kernel.models.generation import Generation

CAPACITY = 1 << 14  # generations


class CallLog:
    """The last `CAPACITY` generations of all models, in the order in which they ended."""

    def __init__(self, gate: Gate) -> None:
        self._number = 0
        self._calls: deque[FinishedCall] = deque(maxlen=CAPACITY)
        gate.register({FinishedCalls: self.since})

    def add(self, generation: Generation, now: float) -> None:
        """Record `generation`, which ended at `now`."""
        self._number += 1
        process, group, error = generation.process, generation.group, generation.error
        self._calls.append(
            FinishedCall(
                number=self._number,
                model=generation.model,
                pid=process.pid,
                program=process.program,
                program_id=group.id,
                owner=group.owner,
                weight=group.weight,
                priority=generation.priority,
                deadline=group.deadline,
                prompt=len(generation.prompt_ids or ()),
                generated=len(generation.ids),
                limit=generation.sampling.max_tokens or 0,
                submitted=generation.submitted,
                started=generation.started,
                first=generation.first,
                ended=now,
                preemptions=generation.preemptions,
                error=type(error).__name__ if error is not None else "cancelled" * generation.cancelled,
            )
        )

    def since(self, process: Process, call: FinishedCalls) -> list[FinishedCall]:
        """The recorded generations whose number is above `call.after`, the oldest first."""
        new = min(max(self._number - call.after, 0), len(self._calls))
        first = len(self._calls) - new
        return list(itertools.islice(self._calls, first, first + FinishedCalls.page))
