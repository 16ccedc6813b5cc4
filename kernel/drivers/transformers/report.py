"""The reports of the driver to the kernel: a bundle with the progress of several steps, followed by events.

The engine and `call_lifecycle` fill a report; a flush is one write to the link. It never sends an event before the
tokens that led to that event.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from ipc.errors import DriverFailed, ErrorInfo, LlmosError, brief, to_wire
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
    Working,
)

INTERVAL = 0.05  # seconds between two bundles, unless an event must be sent sooner

Event = Admitted | Restored | Parked | SwappedOut | Done | Scored | Embedded | SequenceFailed


class ReportLink(Protocol):
    """Sends messages to the kernel; see `kernel.drivers.child.KernelLink`."""

    def send(self, *messages: FromDriver) -> None: ...


class BundleReport:
    """Collects progress and events until `flush`."""

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
        """A step ended, which took `seconds`; `kv` is the state of KV memory after it."""
        self._steps += 1
        self._seconds += seconds
        self._kv = kv

    def progress(self, sequence: int, ids: list[int], text: str, logprobs: list[float] | None = None) -> None:
        """Add new tokens of a sequence, and the text that they release."""
        entry = self._progress.get(sequence)
        if entry is None:
            entry = self._progress[sequence] = Progress(sequence, [], "", [])
        entry.ids += ids
        entry.text += text
        entry.logprobs += logprobs or ()

    def event(self, event: Event) -> None:
        """Add an event, which must reach the kernel before the next step."""
        self._events.append(event)

    def waiting(self, kv: KVUsage) -> None:
        """Report that no request can run because requests wait for memory. Call it after a flush."""
        self._link.send(Bundle([], 0, 0.0, kv))

    def working(self) -> None:
        """Report that the driver waits for its own threads. Call it after a flush."""
        self._link.send(Working())

    def flush(self) -> None:
        """Send all progress and events."""
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
        """Call `flush` if there is an event, or if the last flush was `INTERVAL` ago."""
        if self._events or self._clock() - self._flushed >= INTERVAL:
            self.flush()


def wire_error(error: BaseException) -> ErrorInfo:
    """The wire form of `error`. An error that is not an `LlmosError` becomes `DriverFailed`."""
    if not isinstance(error, LlmosError):
        error = DriverFailed(brief(error))
    return to_wire(error)
