"""Gathers the calls that end in a daemon while one watches.

Used by `llmos record`, the calibration and the benches. It asks from time to time; the daemon remembers meanwhile.
"""

from __future__ import annotations

from ipc.syscalls import FinishedCall, FinishedCalls
from llmosd.client.blocking import Client
from llmosd.simulator.recording import Recording


class Recorder:
    """What has ended since it was made; with `past` also what the daemon remembers from before."""

    def __init__(self, client: Client, *, past: bool = False) -> None:
        self._client = client
        self._calls: list[FinishedCall] = []
        self._lost = self._last = 0
        before: list[FinishedCall] = client.request(FinishedCalls())
        if before:
            self._last = before[-1].number
        if past:
            self._calls += before

    @property
    def recording(self) -> Recording:
        """All that was seen so far."""
        return Recording(calls=self._calls, lost=self._lost)

    def poll(self) -> list[FinishedCall]:
        """What has ended since the last look."""
        new: list[FinishedCall] = self._client.request(FinishedCalls(self._last))
        if new:
            self._lost += new[0].number - self._last - 1
            self._last = new[-1].number
            self._calls += new
        return new
