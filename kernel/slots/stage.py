"""At what stage a model is, from not in memory to serving: set by its runtime, shown to whoever waits for the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from ipc.messages import State
from kernel.slots.sequence import QUEUED, Sequence

# Not in memory; waits for memory; gets ready; serves; writes down what it holds, to go; gets ready again; cannot run.
UNLOADED, WAITING, LOADING, READY, LEAVING = "unloaded", "waiting", "loading", "ready", "leaving"
RESTARTING, FAILED = "restarting", "failed"

log = structlog.get_logger("kernel.slots")


class Stage:
    """`state` is one of the words above, `detail` says more. `sequences`: those of the model, as they are now."""

    def __init__(self, model: str, sequences: Mapping[int, Sequence]) -> None:
        self.state = UNLOADED
        self.detail = ""
        self._model = model
        self._sequences = sequences

    def set(self, state: str, detail: str, facts: Mapping[str, Any] | None = None) -> None:
        """The model is at another stage, or further on in the same. `facts`: for the log, if there is no detail."""
        if (state, detail) == (self.state, self.detail):
            return
        if state != self.state:
            log.info("model " + state, model=self._model, **({"detail": detail} if detail else facts or {}))
        self.state, self.detail = state, detail
        for sequence in self._sequences.values():
            self.tell(sequence)

    def tell(self, sequence: Sequence) -> None:
        """Show whoever submitted the task what its call waits for."""
        stream = sequence.process.stream
        if stream is not None and sequence.state == QUEUED:
            stream.push(State(sequence.process.pid, f"model {self._model} {self.state}", self.detail))
