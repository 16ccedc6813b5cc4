"""What the driver tells the kernel about its sequences: steps gathered into bundles, then the events after them.

Written by the engine, sent over the link in one write. An event is never sent before the tokens that led to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from ipc.errors import DriverFailed, ErrorInfo, LlmosError, to_wire
from kernel.drivers.protocol import (
    Admitted,
    Bundle,
    Done,
    Embedded,
    FromDriver,
    KVUsage,
    Parked,
    Progress,
    Restored,
    Scored,
    SequenceFailed,
    SwappedOut,
)

INTERVAL = 0.05  # seconds between bundles while nothing else has to be said

Event = Admitted | Restored | Parked | SwappedOut | Done | Scored | Embedded | SequenceFailed


class ReportLink(Protocol):
    """What sends messages to the kernel; see `kernel.drivers.child.KernelLink`."""

    def send(self, *messages: FromDriver) -> None: ...


class BundleReport:
    """Gathers what happens until `flush`."""

    def __init__(self, link: ReportLink, clock: Callable[[], float] = time.perf_counter) -> None:
        self._link = link
        self._clock = clock
        self._flushed = clock()
        self._steps = 0
        self._seconds = 0.0
        self._kv = KVUsage()
        self._progress: dict[int, Progress] = {}
        self._events: list[Event] = []

    def step(self, seconds: float, kv: KVUsage) -> None:
        """A step of so many seconds ended, and left keys and values like this."""
        self._steps += 1
        self._seconds += seconds
        self._kv = kv

    def progress(self, sequence: int, ids: list[int], text: str, logprobs: list[float] | None = None) -> None:
        """New tokens of a sequence, and the text they release."""
        entry = self._progress.get(sequence)
        if entry is None:
            entry = self._progress[sequence] = Progress(sequence, [], "", [])
        entry.ids += ids
        entry.text += text
        entry.logprobs += logprobs or ()

    def event(self, event: Event) -> None:
        """Something that the kernel must know before the next step."""
        self._events.append(event)

    def waiting(self, kv: KVUsage) -> None:
        """Nothing can run for want of memory. Call it when all that was gathered is sent."""
        self._link.send(Bundle([], 0, 0.0, kv))

    def flush(self) -> None:
        """Send all that was gathered."""
        messages: list[FromDriver] = []
        if self._steps or self._progress:
            messages.append(Bundle(list(self._progress.values()), self._steps, self._seconds, self._kv))
        messages += self._events
        if messages:
            self._link.send(*messages)
        self._flushed = self._clock()
        self._steps, self._seconds = 0, 0.0
        self._progress, self._events = {}, []

    def flush_if_due(self) -> None:
        """`flush` if there is an event, or if the last time is long enough ago."""
        if self._events or self._clock() - self._flushed >= INTERVAL:
            self.flush()


def named(error: BaseException) -> ErrorInfo:
    """The wire form of `error`; one that llmosd has no name for is the driver's fault."""
    if not isinstance(error, LlmosError):
        error = DriverFailed(f"{type(error).__name__}: {error}")
    return to_wire(error)
