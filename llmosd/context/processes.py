"""Other processes and time, as an agent deals with them."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any

from ipc.codec import reveal
from ipc.errors import from_wire
from ipc.syscalls import ExitStatus, Kill, Sleep, Spawn, Wait
from llmosd.context.base import Caller


class ProcessCalls(Caller):
    """Spawn, wait, kill and sleep."""

    __slots__ = ()

    def spawn(
        self,
        program: str,
        args: Mapping[str, Any] | None = None,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        owner: str | None = None,
        detach: bool = False,
    ) -> Coroutine[Any, Any, int]:
        """Start another program; its pid. It dies with this process unless `detach`."""
        call = Spawn(program, dict(args or {}), (), False, priority, deadline, owner, detach)
        return self._gate.call(self._process, call)

    async def wait(self, pid: int, timeout: float | None = None) -> Any:
        """The result of process `pid`, when it has ended. Raises its error if it failed."""
        status: ExitStatus = await self._gate.call(self._process, Wait(pid, timeout))
        if status.error is not None:
            raise from_wire(status.error)
        return reveal(status.value)

    async def kill(self, pid: int) -> None:
        """End process `pid` and its children; returns when it is gone."""
        await self._gate.call(self._process, Kill(pid))

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Do nothing for `seconds`."""
        return self._gate.call(self._process, Sleep(seconds))
