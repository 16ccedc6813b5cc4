"""Collects the calls that end in a daemon, by polling its call log.

Used by `llmos record`, the calibration and the benches. The daemon logs the last calls in memory between two polls. It
writes no file.
"""

from __future__ import annotations

from ipc.syscalls import FinishedCall, FinishedCalls
from llmosd.client.blocking import Client
from llmosd.simulator.recording import Recording


class Recorder:
    """The calls that ended since it was made; with `past` also those before that are still in the daemon's call log."""

    def __init__(self, client: Client, *, past: bool = False) -> None:
        self._client = client
        self._calls: list[FinishedCall] = []
        self._lost = self._last = 0
        logged: list[FinishedCall] = client.request(FinishedCalls())
        if logged:
            self._last = logged[-1].number
        if past:
            self._calls += logged

    @property
    def recording(self) -> Recording:
        """The calls collected so far."""
        return Recording(calls=self._calls, lost=self._lost)

    def poll(self) -> list[FinishedCall]:
        """Fetch the calls that ended since the last poll."""
        new: list[FinishedCall] = self._client.request(FinishedCalls(self._last))
        if new:
            self._lost += new[0].number - self._last - 1
            self._last = new[-1].number
            self._calls += new
        return new
