"""The outcome of a process: maps the end of its main thread to the exit status, and the status to the final event.

The lifecycle and the threads call it when a thread ends by itself; connections and tasks use the final event. It never
ends a process. The text of an error is an agent's text, so all of it is bounded, and no error is lost because it cannot
be formatted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec

from ipc.codec import PLAIN, encode
from ipc.errors import AgentFailed, ErrorInfo, FrameTooLarge, LlmosError, NotEncodable, encodable, to_wire
from ipc.foreign import is_a
from ipc.frames import MAX_FRAME
from ipc.messages import Failed, Result
from ipc.syscalls import ExitStatus
from kernel.core.process import Process, Thread
from kernel.core.stream import Stream
from kernel.lib import failures

INTENDED = frozenset({"done", "killed"})  # the reasons of ends that are no crashes, so there is no crash report
MAX_RESULT = MAX_FRAME - 2048  # bytes of the result of a task; the rest of the frame is for the event that carries it
MAX_MESSAGE = 8_192  # characters of the message of an error that ends a process
MAX_FACTS = 1 << 20  # bytes of its encoded facts; beyond, only short texts and numbers remain
MAX_FACT = 8_192  # characters of each of them
SHORT_FACTS = frozenset({str, int, float, bool})


def outcome(thread: asyncio.Future[Any], process: Process) -> tuple[str, Any, ErrorInfo | None]:
    """The reason, value and error for a process whose main thread ended by itself. The value is isolated."""
    try:
        return _outcome(thread, process)
    except BaseException as error:  # an object of the agent, or a mistake of ours: the process must end
        return "failed", None, failure(error, process.program)


def _outcome(thread: asyncio.Future[Any], process: Process) -> tuple[str, Any, ErrorInfo | None]:
    if thread.cancelled():
        place, text = _definition(cast("Thread", thread))
        message = failures.with_place(place, f"{process.program} cancelled itself")
        return "failed", None, to_wire(AgentFailed(message, program=process.program, place=place, traceback=text))
    error = thread.exception()
    if error is not None:
        return "failed", None, failure(error, process.program)
    value = thread.result()
    try:
        plain = type(value) in PLAIN and (type(value) is not str or value.isascii())
        isolated = value if plain else msgspec.Raw(encode(value))
        _check_size(isolated, process)
    except (NotEncodable, FrameTooLarge) as unfit:
        place, text = _definition(cast("Thread", thread))
        message = f"the result of {process.program}: {unfit.message}"
        error = type(unfit)(message, place=place, traceback=f"{text}\n{type(unfit).__name__}: {message}")
        return "failed", None, to_wire(error)
    return "done", isolated, None


def failure(error: BaseException, program: str) -> ErrorInfo:
    """The wire form of `error`, which left the code of `program`, with its place and traceback.

    An error of our own tree keeps its class, its message and its facts.
    """
    place, text = failures.place(error), failures.traceback_text(error)
    where = {"place": place} if place else {}
    if not is_a(error, LlmosError):
        message = failures.with_place(place, f"{program}: {failures.summary(error)}")
        return to_wire(AgentFailed(message, traceback=text, program=program, **where))
    info = to_wire(error)
    facts = info.data
    if len(msgspec.msgpack.encode(facts)) > MAX_FACTS:
        facts = {name: _cut(fact) for name, fact in facts.items() if type(fact) in SHORT_FACTS}
    message = failures.bounded(info.message, MAX_MESSAGE)
    return encodable(ErrorInfo(info.code, message, {**facts, "traceback": text, **where}))


def final_event(status: ExitStatus) -> Result | Failed:
    """The last event of a task whose process ended with `status`."""
    return Result(status.pid, status.value) if status.error is None else Failed(status.pid, status.error)


def final_event_to(stream: Stream) -> Callable[[Process], None]:
    """A watcher that pushes the final event of its process into `stream`, and ends the stream."""

    def finish(process: Process) -> None:
        assert process.status is not None
        stream.push(final_event(process.status))
        stream.end()
        process.awaited = True

    return finish


# ---- inside


def _check_size(value: Any, process: Process) -> None:
    """Raises `FrameTooLarge` if the process is that of a task, and no frame can take its result to a client."""
    if process.stream is None or not (process.parent is None or process.parent.is_client):
        return
    size = len(value) if isinstance(value, str | bytes | msgspec.Raw) else 0
    if size > MAX_RESULT:
        raise FrameTooLarge(
            f"{size} bytes are more than a frame holds ({MAX_RESULT}); put large data into a shared region or a file",
            length=size,
            limit=MAX_RESULT,
        )


def _cut(fact: Any) -> Any:
    return failures.bounded(fact, MAX_FACT) if isinstance(fact, str) else fact


def _definition(thread: Thread) -> tuple[str, str]:
    """The place where the coroutine of `thread` is defined, and the same as a line of a traceback."""
    code = getattr(thread.get_coro(), "cr_code", None)
    if code is None:
        return "", ""
    file = failures.bounded(code.co_filename, failures.MAX_TEXT)
    line = code.co_firstlineno
    return f"{file}:{line}", f'  File "{file}", line {line}, in {code.co_name}'
