"""Tools: the call of an agent that runs a function in a worker thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipc.codec import reveal
from ipc.syscalls import UseTool
from llmosd.context.base import Caller, dict_of


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
        """Run tool `name` with the arguments in `args` and `more`, and return its result.

        A result above 1 MiB is stored in a shared region, and a `Reference` to the region is returned.

        Raises `TimedOut` after `timeout` seconds (default: the tool's own timeout), and `ToolFailed` if the function
        raises. If no place of the tool is free, the call waits in line, or raises `Busy` if `wait` is false. An
        argument of the tool that is named `timeout` or `wait` must be passed in `args`.
        """
        call = UseTool(name, dict_of(args, "args of tool") | more, timeout, wait)
        return reveal(await self._gate.call(self._process, call))
