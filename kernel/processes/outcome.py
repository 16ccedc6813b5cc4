"""What comes of a process: of the end of its main thread, the outcome, and of that the last event of its task.

Used by the lifecycle and by what answers for tasks. It ends nothing.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from ipc.codec import PLAIN, encode
from ipc.errors import AgentFailed, ErrorInfo, LlmosError, NotEncodable, to_wire
from ipc.messages import Failed, Result
from ipc.syscalls import ExitStatus
from kernel.core.process import Process
from kernel.core.stream import Stream


def outcome(thread: asyncio.Future[Any], process: Process) -> tuple[str, Any, ErrorInfo | None]:
    """Reason, value and error of a main thread that ended by itself. The value is encodable and belongs to nobody."""
    if thread.cancelled():
        return "failed", None, to_wire(AgentFailed(f"{process.program} cancelled itself"))
    error = thread.exception()
    if error is None:
        value = thread.result()
        try:
            return "done", value if type(value) in PLAIN else msgspec.Raw(encode(value)), None
        except NotEncodable as unfit:
            return "failed", None, to_wire(NotEncodable(f"the result of {process.program}: {unfit.message}"))
    if isinstance(error, LlmosError):
        return "failed", None, to_wire(error)
    text = "".join(traceback.format_exception(error))
    return (
        "failed",
        None,
        to_wire(
            AgentFailed(f"{process.program}: {type(error).__name__}: {error}", traceback=text, program=process.program)
        ),
    )


def final_event(status: ExitStatus) -> Result | Failed:
    """The last event of a task whose process ended so."""
    return Result(status.pid, status.value) if status.error is None else Failed(status.pid, status.error)


def final_event_to(stream: Stream) -> Callable[[Process], None]:
    """A watcher that ends `stream` with the result of the process."""

    def finish(process: Process) -> None:
        assert process.status is not None
        stream.push(final_event(process.status))
        stream.end()

    return finish
