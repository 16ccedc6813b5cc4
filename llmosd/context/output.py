"""Output of an agent: values for whoever submitted the task, and its log."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from ipc.syscalls import Emit, WriteLog
from llmosd.context.base import Caller


class OutputCalls(Caller):
    """Emit and log."""

    __slots__ = ()

    def emit(self, value: Any) -> Coroutine[Any, Any, None]:
        """Hand `value` to whoever submitted the task; waits while they are behind. Nobody there: it is gone."""
        return self._gate.call(self._process, Emit(value))

    def log(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """Add a line to the log of this process."""
        self._gate.call_now(self._process, WriteLog(level, event, fields))
