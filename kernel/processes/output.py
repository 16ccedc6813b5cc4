"""The output subsystem: values that agents emit, and the logs of processes.

The gate calls its handlers. Emitted values are never buffered without a bound: `emit` waits while the client is behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar, cast

from ipc.codec import encode
from ipc.frames import MAX_FRAME, too_large
from ipc.messages import Emitted, Log
from ipc.syscalls import Emit, Logs, WriteLog
from kernel.core.event_log import EventLog
from kernel.core.fiber import PARK
from kernel.core.process import Process, Thread
from kernel.core.process_table import ProcessTable
from kernel.core.reader_wait import ReaderWait
from kernel.core.stream import Stream
from kernel.gate import Gate
from kernel.lib.units import isolate_and_measure
from kernel.lib.validation import check_text

MAX_LEVEL, MAX_EVENT = 20, 1_000_000  # characters
MAX_FIELDS = 1_000_000  # bytes
MAX_LISTED = MAX_FRAME // 2  # bytes of the lines or reports of an answer
MAX_EMITTED = MAX_FRAME - 1024  # bytes of an emitted value; the rest of the frame is for the event that carries it

T = TypeVar("T")


class Output:
    """Takes the emitted values and the log lines of processes."""

    def __init__(self, table: ProcessTable, gate: Gate) -> None:
        self._table = table
        gate.register({Emit: self.emit, WriteLog: self.write_log, Logs: self.logs})

    def emit(self, process: Process, call: Emit) -> Coroutine[Any, Any, None] | None:
        value, size = isolate_and_measure(call.value)
        if size > MAX_EMITTED:
            raise too_large("the emitted value", size, MAX_EMITTED)
        event, stream = Emitted(process.pid, value), process.stream
        if stream is None:
            return None
        if stream.congested:
            return self._emit_later(stream, event)
        stream.push(event)
        return None

    async def _emit_later(self, stream: Stream | EventLog, event: Emitted) -> None:
        thread, wait = cast("Thread", asyncio.current_task()), ReaderWait(stream)
        while stream.congested:
            stream.when_drained(thread.wake)
            thread.waits_for = wait
            try:
                await PARK
            finally:
                stream.forget(thread.wake)
        stream.push(event)

    def write_log(self, process: Process, call: WriteLog) -> None:
        check_text(call.level, "the level of a log line", MAX_LEVEL)
        check_text(call.event, "the text of a log line", MAX_EVENT)
        size = len(encode(call.fields))  # raises `NotEncodable` now, to the caller that passed the field
        if size > MAX_FIELDS:
            raise too_large("the encoding of the fields of a log line", size, MAX_FIELDS)
        process.write_log(Log(process.pid, time.time(), call.level, call.event, call.fields))

    def process_ended(self, process: Process) -> None:
        """End the streams that follow the log of `process`."""
        for follower in process.followers:
            follower.end()
        process.followers = ()

    def logs(self, process: Process, call: Logs, stream: Stream | None = None) -> list[Log]:
        target = self._table.find(call.pid)
        if stream is not None:
            if target.ended:
                stream.end()
            else:
                target.followers = [*(follower for follower in target.followers if not follower.closed), stream]
        return newest_that_fit(target.log or ())


def newest_that_fit(rows: Iterable[T]) -> list[T]:
    """The last ones of `rows`, in their order, that fit into an answer."""
    fitting: list[T] = []
    room = MAX_LISTED
    for row in reversed(list(rows)):
        room -= len(encode(row))
        if room < 0:
            break
        fitting.append(row)
    return fitting[::-1]
