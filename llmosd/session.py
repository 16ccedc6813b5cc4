"""What both clients do alike: the requests they make, and what they make of the answers. No I/O.

Used by `llmosd.client` (blocking) and `llmosd.async_client`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ipc.codec import decode
from ipc.errors import ConnectionLost, LlmosError, from_wire
from ipc.messages import Event, Failed, Restarted, Result
from ipc.protocol import VERSION, Failure, Hello, Welcome
from ipc.syscalls import Attach, ExitStatus, Limits, Submit, Submitted, Syscall

CREDIT = 256  # events that may be on their way to us; half of it read, as much is granted anew
CONNECT_TIMEOUT = 10.0  # seconds for the daemon to take the connection and welcome us


class Seen(NamedTuple):
    """How far somebody has seen the events of a task: which attempt of it, and the number of the last event."""

    attempt: int
    number: int


def submit(
    program: str,
    args: Mapping[str, Any] | None,
    *,
    positional: Iterable[Any] = (),
    lenient: bool = False,
    priority: int | None = None,
    deadline: float | None = None,
    owner: str | None = None,
    detach: bool = False,
    name: str | None = None,
    limits: Limits | None = None,
    key: str | None = None,
    durable: bool = False,
) -> Submit:
    """The call that submits a task whose events we want."""
    return Submit(
        program,
        dict(args or {}),
        tuple(positional),
        lenient,
        priority,
        deadline,
        owner,
        detach,
        credit=CREDIT,
        name=name,
        limits=limits,
        key=key,
        durable=durable,
    )


def attach(task_id: str, after: Seen | tuple[int, int] | None) -> Attach:
    """The call that finds a task again: its events from now on, or those after `after`."""
    attempt, number = after or (0, None)
    return Attach(task_id, CREDIT, number, attempt)


def first_events(after: Seen | tuple[int, int] | None, submitted: Submitted) -> list[Event]:
    """What a task that was found again has to tell first, to who has seen it up to `after`."""
    if after is None or after[0] in (0, submitted.attempt):
        return []
    return [Restarted(submitted.pid, submitted.attempt)]


def absolute(path: str | Path) -> str:
    """The path as the daemon has to be told it, which stands in another folder."""
    return str(Path(path).absolute())


def hello(name: str) -> Hello:
    return Hello(VERSION, name)


def welcomed(message: Any) -> Welcome:
    """The daemon's welcome. Raises its refusal."""
    if isinstance(message, Failure):
        raise from_wire(message.error)
    if not isinstance(message, Welcome):
        raise ConnectionLost(f"expected a welcome, got {type(message).__name__}; is this an llmosd socket?")
    return message


def answer(call: Syscall, value: msgspec.Raw) -> Any:
    """The value of an answer, as the type that the call returns."""
    return decode(value, type(call).returns or Any)


def outcome(status: ExitStatus) -> Any:
    """The value of a process that ended well. Raises its error otherwise."""
    if status.error is not None:
        raise from_wire(status.error)
    return status.value


def is_final(event: Event) -> bool:
    return isinstance(event, Result | Failed)


def final_value(event: Event) -> Any:
    """The value of the last event of a task. Raises its error."""
    if isinstance(event, Failed):
        raise from_wire(event.error)
    assert isinstance(event, Result)
    return event.value


def lost(socket: object) -> LlmosError:
    return ConnectionLost(f"the daemon at {socket} closed the connection")
