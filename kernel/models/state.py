"""The state of one model, from not in memory to serving, and the times by which the residency judges it.

Set by the model's runtime, read by the residency, the memory balance and the listings. It shows each change to the
submitters whose calls wait for the model, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from ipc.messages import State
from kernel.models.sequence import QUEUED, Sequence

# Not in memory; waits for memory; gets ready; serves; writes down what it holds, to go; gets ready again; cannot run.
UNLOADED, WAITING, LOADING, READY, LEAVING = "unloaded", "waiting", "loading", "ready", "leaving"
RESTARTING, FAILED = "restarting", "failed"

log = structlog.get_logger("kernel.models")


class ModelState:
    """`name` is one of the words above, `detail` says more. `sequences`: those of the model, as they are now.

    Times are of `clock`. `load_began` is None while no driver is in memory or on its way there, `ready_at` while the
    model is not ready, `idle_since` while anything runs or wants to, `turn_began` until the model is ready for the
    first time after it was unloaded. `load_patience`: seconds that a load may take at least, since an earlier one was
    given up for another model. `leave_seconds`: how long the last departure took.
    """

    def __init__(self, model: str, sequences: Mapping[int, Sequence], clock: Callable[[], float]) -> None:
        self.name = UNLOADED
        self.detail = ""
        self.load_began: float | None = None
        self.ready_at: float | None = None
        self.turn_began: float | None = None
        self.idle_since: float | None = None
        self.load_patience = 0.0
        self.leave_seconds = 0.0
        self._model = model
        self._sequences = sequences
        self._clock = clock

    @property
    def used(self) -> bool:
        """Whether the model was ever to be loaded."""
        return self.name != UNLOADED or bool(self.detail)

    @property
    def leaving(self) -> bool:
        """Whether the memory that its driver takes, if any, will soon be free."""
        return self.name not in (LOADING, READY, RESTARTING)

    def set(self, name: str, detail: str, facts: Mapping[str, Any] | None = None) -> None:
        """The model is in another state, or further on in the same. `facts`: for the log, if there is no detail."""
        if (name, detail) == (self.name, self.detail):
            return
        if name != self.name:
            log.info("model " + name, model=self._model, **({"detail": detail} if detail else facts or {}))
        self.name, self.detail = name, detail
        for sequence in self._sequences.values():
            self.show(sequence)

    def show(self, sequence: Sequence) -> None:
        """Show the submitter of the task what its call waits for."""
        stream = sequence.process.stream
        if stream is not None and sequence.state == QUEUED:
            stream.push(State(sequence.process.pid, f"model {self._model} {self.name}", self.detail))

    # ---- changes that the residency has to know the time of

    def load_begins(self, name: str, detail: str) -> None:
        """A driver is about to start: the first (`LOADING`), or one that replaces another (`RESTARTING`)."""
        self.ready_at = self.idle_since = None
        self.load_began = self._clock()
        self.set(name, detail)

    def turn_begins(self, facts: Mapping[str, Any]) -> None:
        """The driver has loaded the model, which serves from now on. After a restart its turn goes on."""
        self.ready_at = self._clock()
        self.turn_began = self.turn_began or self.ready_at
        self.load_patience = 0.0
        self.set(READY, "", facts)

    def turn_ends(self, why: str) -> None:
        """The driver has to go. A load that is given up may take twice as long next time."""
        if self.turn_began is None and self.load_began is not None:
            self.load_patience = 2 * (self._clock() - self.load_began)
        self.ready_at = self.idle_since = self.turn_began = None
        self.set(LEAVING, why)

    def unloaded(self, why: str) -> None:
        """The driver has gone."""
        self.load_began = None
        self.set(UNLOADED, why)

    def failed(self, why: str) -> None:
        """The model cannot run."""
        self.ready_at = self.idle_since = self.turn_began = self.load_began = None
        self.set(FAILED, why)
