"""Output: what a process says to people."""

from __future__ import annotations

from typing import Any

from ipc.syscalls.base import Body, Syscall


class Emit(Syscall, tag="emit"):
    """Hand `value` to whoever submitted the task; waits while they have not read what came before.

    Errors: `NotEncodable`, `FrameTooLarge`.
    """

    value: Body


class WriteLog(Syscall, tag="log"):
    """Add a line to the caller's log."""

    level: str
    event: str
    fields: dict[str, Any] = {}


OutputCalls = Emit | WriteLog
