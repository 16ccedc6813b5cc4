"""The state of one model, from unloaded to ready, and the times from which the residency decides about it.

Set by the model's runtime; read by the residency, the memory balancer and the listings. Pushes each change into
the streams of the processes whose calls are queued. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from ipc.messages import State
from kernel.models.sequence import QUEUED, Sequence

UNLOADED = "unloaded"
WAITING = "waiting"  # for memory
LOADING = "loading"
READY = "ready"
UNLOADING = "leaving"  # the driver writes its sequences to disk, then ends; clients know this word, so do not change it
RESTARTING = "restarting"  # the driver died, and another one loads the model
FAILED = "failed"  # the model cannot run; the next call tries again

log = structlog.get_logger("kernel.models")


class ModelState:
    """`name` is one of the states above, `detail` says more. `sequences` is a live view of the model's sequences.

    Times are read from `clock`. `load_began` is None while no driver is in memory or on its way there, `ready_at` while
    the model is not ready, and `idle_since` while a sequence runs, queues or is being swapped out. `turn_began` is when
    the model was first ready since the last unload, None until then. `load_allowance`: seconds for which the next load
    may not be given up; set when a load is given up for another model. `unload_seconds`: how long the last unload took.
    """

    def __init__(self, model: str, sequences: Mapping[int, Sequence], clock: Callable[[], float]) -> None:
        self.name = UNLOADED
        self.detail = ""
        self.load_began: float | None = None
        self.ready_at: float | None = None
        self.turn_began: float | None = None
        self.idle_since: float | None = None
        self.load_allowance = 0.0
        self.unload_seconds = 0.0
        self._idle_before = 0.0  # seconds of all idle times that have ended
        self._model = model
        self._sequences = sequences
        self._clock = clock

    @property
    def ever_used(self) -> bool:
        """Whether anything ever asked for the model."""
        return self.name != UNLOADED or bool(self.detail)

    @property
    def frees_memory(self) -> bool:
        """Whether the memory of the driver is about to be free: the driver, if there is one, is ending."""
        return self.name not in (LOADING, READY, RESTARTING)

    def set(self, name: str, detail: str, facts: Mapping[str, Any] | None = None) -> None:
        """Enter a state, or change the detail of the present one. `facts` are logged if there is no detail."""
        if (name, detail) == (self.name, self.detail):
            return
        if name != self.name:
            log.info("model " + name, model=self._model, **({"detail": detail} if detail else facts or {}))
        self.name, self.detail = name, detail
        for sequence in self._sequences.values():
            self.show(sequence)

    def show(self, sequence: Sequence) -> None:
        """Push the state into the stream of `sequence`, if `sequence` is queued."""
        stream = sequence.process.stream
        if stream is not None and sequence.state == QUEUED:
            stream.push(State(sequence.process.pid, f"model {self._model} {self.name}", self.detail))

    # ---- changes whose times the residency reads

    @property
    def idle_seconds(self) -> float:
        """For how long the model was idle in all, while it was in memory."""
        return self._idle_before + (0.0 if self.idle_since is None else self._clock() - self.idle_since)

    def becomes_idle(self) -> None:
        """No sequence runs, queues or is being swapped out any more."""
        self.idle_since = self._clock()

    def becomes_busy(self) -> None:
        """A sequence runs or queues, or the driver leaves memory."""
        self._idle_before, self.idle_since = self.idle_seconds, None

    def load_begins(self, name: str, detail: str) -> None:
        """A driver is about to start: a first one (`LOADING`), or a replacement (`RESTARTING`)."""
        self.becomes_busy()
        self.ready_at = None
        self.load_began = self._clock()
        self.set(name, detail)

    def turn_begins(self, facts: Mapping[str, Any]) -> None:
        """The driver has loaded the model. If a driver died during a turn, the same turn goes on."""
        self.ready_at = self._clock()
        self.turn_began = self.turn_began or self.ready_at
        self.load_allowance = 0.0
        self.set(READY, "", facts)

    def turn_ends(self, why: str) -> None:
        """The model is about to be unloaded. If it was still loading, its next load gets twice the time of this one."""
        if self.turn_began is None and self.load_began is not None:
            self.load_allowance = 2 * (self._clock() - self.load_began)
        self.becomes_busy()
        self.ready_at = self.turn_began = None
        self.set(UNLOADING, why)

    def unloaded(self, why: str) -> None:
        """The driver has ended."""
        self.load_began = None
        self.set(UNLOADED, why)

    def failed(self, why: str) -> None:
        """The model cannot run."""
        self.becomes_busy()
        self.ready_at = self.turn_began = self.load_began = None
        self.set(FAILED, why)
