"""The generations that ended last, for whoever wants to know what the models were asked.

Told by the workloads, asked by the system call `FinishedCalls`. It remembers a bounded number and writes nothing.
"""

from __future__ import annotations

import itertools
from collections import deque

from ipc.syscalls import FinishedCall, FinishedCalls
from kernel.core.process import Process
from kernel.gate import Gate
from kernel.models.generation import Generation

KEPT = 1 << 14


class CallLog:
    """The last `KEPT` generations of all models, in the order of their ends."""

    def __init__(self, gate: Gate) -> None:
        self._number = 0
        self._calls: deque[FinishedCall] = deque(maxlen=KEPT)
        gate.register({FinishedCalls: self.since})

    def add(self, generation: Generation, now: float) -> None:
        """`generation` is over."""
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
        new = min(max(self._number - call.after, 0), len(self._calls))
        return list(itertools.islice(self._calls, len(self._calls) - new, None))
