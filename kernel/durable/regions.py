"""Shared regions that survive the daemon: written down as they change, and there again before anybody looks.

Called by shared memory for the regions that were set as durable.
"""

from __future__ import annotations

import msgspec
import structlog

from ipc.codec import decode
from ipc.errors import MalformedFrame
from kernel.core.process import Process
from kernel.durable.commits import CommitReceipt, Commits
from kernel.durable.recorded_call import raw
from kernel.journal.changes import DropRegion, PutRegion
from kernel.journal.histories import RecoveredState
from kernel.memory.shared import Region, SharedMemory

log = structlog.get_logger("kernel.durable")


class DurableRegions:
    """A durable process waits for the commit of its call, which is that of the change; all others for the change."""

    def __init__(self, shared: SharedMemory, commits: Commits) -> None:
        self._shared = shared
        self._commits = commits

    def changed(self, process: Process, name: str, region: Region) -> CommitReceipt | None:
        value = bytes(raw(region.value))
        number = self._commits.keep(PutRegion(name, region.version, region.owner, value))
        return CommitReceipt(self._commits, number) if process.durable is None else None

    def deleted(self, process: Process, name: str) -> CommitReceipt | None:
        number = self._commits.keep(DropRegion(name))
        return CommitReceipt(self._commits, number) if process.durable is None else None

    def restore(self, opening: RecoveredState) -> None:
        """Have the regions of an earlier life again. One that cannot be read is named and left out."""
        self._shared.begin_after(opening.version)
        for name, version, owner, value in opening.regions:
            try:
                decode(value)
            except MalformedFrame as error:
                log.error("a durable region cannot be read", name=name, error=error.message)
            else:
                self._shared.restore(name, version, owner, msgspec.Raw(value))
