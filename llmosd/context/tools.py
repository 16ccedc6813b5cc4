"""Tools: the call of an agent that runs a plain function in a worker thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipc.codec import reveal
from ipc.syscalls import UseTool
from llmosd.context.base import Caller


class ToolMethods(Caller):
    """Plain functions, run in worker threads."""

    __slots__ = ()

    async def tool(
        self,
        name: str,
        args: Mapping[str, Any] | None = None,
        /,
        *,
        timeout: float | None = None,
        wait: bool = True,
        **more: Any,
    ) -> Any:
        """The result of tool `name` for `args` and `more`; a `Reference` to a shared region if it is above 1 MiB.

        Raises `TimedOut` after `timeout` seconds (default: the tool's own timeout), and `ToolFailed` if the function
        raises. If all places of the tool are taken, the call waits in line, or raises `Busy` if `wait` is false. Pass
        arguments named `timeout` or `wait` in `args`.
        """
        call = UseTool(name, {**(args or {}), **more}, timeout, wait)
        return reveal(await self._gate.call(self._process, call))
