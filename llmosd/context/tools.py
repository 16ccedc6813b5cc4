"""Tools, as an agent calls them."""

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
        """What tool `name` returns for `args` and `more`; a `Reference` to a shared region if that is over 1 MiB.

        At most `timeout` seconds; if all its places are taken, waits in line, or raises `Busy` without `wait`. What the
        tool raises becomes `ToolFailed`. Arguments that are called `timeout` or `wait` go into `args`.
        """
        call = UseTool(name, {**(args or {}), **more}, timeout, wait)
        return reveal(await self._gate.call(self._process, call))
