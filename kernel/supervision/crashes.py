"""Crash reports: why a process failed, with its usage, its last messages and the end of its log.

The kernel calls it at every end of a process, before the subsystem that closes the mailbox. It stores the last
`CAPACITY` reports in memory, and never changes a process.
"""

from __future__ import annotations

import time
from collections import deque

import msgspec
import structlog

from ipc.errors import ErrorInfo, NotFound
from ipc.messages import Log
from ipc.syscalls import Crashes, CrashReport, Received
from kernel.core.process import Process
from kernel.core.process_table import ProcessTable
from kernel.gate import Gate
from kernel.lib.failures import bounded
from kernel.processes.outcome import INTENDED
from kernel.processes.output import newest_that_fit

CAPACITY = 100
LOG_LINES = 10  # lines from the end of the log that a report quotes
MAX_LINE = 2_000  # characters of each of them
MAX_FIELDS = 40_000  # bytes of its encoded fields, such as a traceback; larger ones are left out
MAX_FACTS = 65_536  # bytes of the encoded facts of an error; beyond, only its place and its traceback remain

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
        return newest_that_fit(reports)

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
                error=None if status.error is None else _quoted_error(status.error),
                age=time.monotonic() - process.started,
                usage=process.usage(),
                messages=[Received(*message) for message in received],
                unread=0 if box is None else box.count,
                log=[_quoted_line(line) for line in list(process.log or ())[-LOG_LINES:]],
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


def _quoted_error(error: ErrorInfo) -> ErrorInfo:
    where = {name: error.data[name] for name in ("place", "traceback", "program", "crash") if name in error.data}
    others = {name: fact for name, fact in error.data.items() if name not in where}
    if len(msgspec.msgpack.encode(others)) <= MAX_FACTS:
        return error
    return msgspec.structs.replace(error, data=where)


def _quoted_line(line: Log) -> Log:
    fields = line.fields
    size = len(msgspec.msgpack.encode(fields))
    if size > MAX_FIELDS:
        fields = {"omitted": f"{size} bytes of fields"}
    return Log(line.pid, line.time, line.level, bounded(line.event, MAX_LINE), fields)


def _end(process: Process) -> str:
    """How a process without a crash report ended."""
    if not process.ended:
        return "it has not ended"
    return {"done": "it ended well", "killed": "it was killed"}.get(
        process.dying, f"only the last {CAPACITY} reports are retained"
    )
