"""Durable shared regions: persisted when they change, and restored before the daemon answers any call.

Called by shared memory for the regions that were set with `durable`. It never holds a value itself.
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
    """Persists changes. A durable caller gets no receipt: it waits for the record of its call, in the same commit."""

    def __init__(self, shared: SharedMemory, commits: Commits) -> None:
        self._shared = shared
        self._commits = commits

    def changed(self, process: Process, name: str, region: Region) -> CommitReceipt | None:
        value = bytes(raw(region.value))
        number = self._commits.persist(PutRegion(name, region.version, region.owner, value))
        return CommitReceipt(self._commits, number) if process.durable is None else None

    def deleted(self, process: Process, name: str) -> CommitReceipt | None:
        number = self._commits.persist(DropRegion(name))
        return CommitReceipt(self._commits, number) if process.durable is None else None

    def restore(self, opening: RecoveredState) -> None:
        """Restore the regions that are in the journal. Log and skip a region that cannot be decoded."""
        self._shared.start_ids_after(opening.version)
        for name, version, owner, value in opening.regions:
            try:
                decode(value)
            except MalformedFrame as error:
                log.error("skipped a durable region that cannot be read", name=name, error=error.message)
            else:
                self._shared.restore(name, version, owner, msgspec.Raw(value))
