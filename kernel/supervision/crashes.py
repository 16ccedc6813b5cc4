"""Crash reports: why a process failed, with its usage, its last messages and the end of its log.

The kernel calls it at every end of a process, before the subsystem that closes the mailbox. It stores the last
`CAPACITY` reports in memory, and never changes a process.
"""

from __future__ import annotations

import time
from collections import deque

import structlog

from ipc.errors import NotFound
from ipc.syscalls import Crashes, CrashReport, Received
from kernel.core.process import Process
from kernel.core.process_table import ProcessTable
from kernel.gate import Gate
from kernel.processes.outcome import INTENDED

CAPACITY = 100
LOG_LINES = 10  # lines from the end of the log that a report quotes

log = structlog.get_logger("kernel.processes")


class CrashReports:
    """The last `CAPACITY` crash reports."""

    def __init__(self, table: ProcessTable, gate: Gate) -> None:
        self._table = table
        self._ring: deque[CrashReport] = deque(maxlen=CAPACITY)
        gate.register({Crashes: self.crashes})

    def crashes(self, process: Process, call: Crashes) -> list[CrashReport]:
        """All reports, or those of one process. Raises `UnknownProcess`, and `NotFound` if it has not failed."""
        reports = [report for report in self._ring if call.pid in (None, report.pid)]
        if call.pid is not None and not reports:
            target = self._table.find(call.pid)  # raises `UnknownProcess`
            raise NotFound(f"there is no crash report of process {target.pid} ({target.program}): {_end(target)}")
        return reports

    def process_ended(self, process: Process) -> None:
        status, box = process.status, process.mailbox
        if status is None or status.reason in INTENDED or process.is_client:
            return
        received = () if box is None else box.received or ()
        self._ring.append(
            CrashReport(
                time=time.time(),
                pid=process.pid,
                parent=process.parent_pid,
                program=process.program,
                owner=process.owner,
                reason=status.reason,
                error=status.error,
                age=time.monotonic() - process.started,
                usage=process.usage(),
                messages=[Received(*message) for message in received],
                unread=0 if box is None else box.count,
                log=list(process.log or ())[-LOG_LINES:],
            )
        )
        log.warning(
            "agent failed",
            pid=process.pid,
            program=process.program,
            reason=status.reason,
            error="" if status.error is None else f"{status.error.code}: {status.error.message}",
            place="" if status.error is None else status.error.data.get("place", ""),
        )


def _end(process: Process) -> str:
    """How a process without a crash report ended."""
    if not process.ended:
        return "it has not ended"
    return {"done": "it ended well", "killed": "it was killed"}.get(
        process.dying, f"only the last {CAPACITY} reports are retained"
    )
