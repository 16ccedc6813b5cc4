"""Collects the calls that end in a daemon, by polling its call log.

Used by `llmos record`, the calibration and the benches. The call log is in memory and bounded, so calls are lost if
polls are too rare. It writes no file.
"""

from __future__ import annotations

from ipc.syscalls import FinishedCall, FinishedCalls
from llmosd.client.blocking import Client
from llmosd.simulator.recording import Recording


class Recorder:
    """Collects the calls that end from now on; with `past`, also those that are in the daemon's call log already."""

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
