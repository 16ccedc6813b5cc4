"""Other processes and time, as an agent deals with them."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any

from ipc.codec import reveal
from ipc.errors import from_wire
from ipc.syscalls import ExitStatus, Kill, Limits, Nice, Resume, Sleep, Spawn, Suspend, Wait
from llmosd.context.base import Caller


class ProcessCalls(Caller):
    """Spawn, wait, kill, suspend, resume, nice and sleep."""

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
        name: str | None = None,
        link: bool = False,
        limits: Limits | None = None,
    ) -> Coroutine[Any, Any, int]:
        """Start another program; its pid. It dies with this process unless `detach`, and this one with it if `link`.

        It is registered as `name` before its first step. Its limits are those of this process, or stricter `limits`.
        """
        call = Spawn(
            program,
            dict(args or {}),
            priority=priority,
            deadline=deadline,
            owner=owner,
            detach=detach,
            name=name,
            link=link,
            limits=limits,
        )
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

    def suspend(self, pid: int) -> Coroutine[Any, Any, None]:
        """Stop process `pid` at its next system call, and take its generations off their slots."""
        return self._gate.call(self._process, Suspend(pid))

    def resume(self, pid: int) -> Coroutine[Any, Any, None]:
        """Let process `pid` go on. Nothing if it is not suspended."""
        return self._gate.call(self._process, Resume(pid))

    def nice(self, pid: int, priority: int, *, relative: bool = False) -> Coroutine[Any, Any, int]:
        """Give process `pid` a priority from -20 to 20, the most urgent; the new one.

        With `relative`, `priority` is added to what it has, and the sum kept within these bounds.
        """
        return self._gate.call(self._process, Nice(pid, priority, relative))

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Do nothing for `seconds`."""
        return self._gate.call(self._process, Sleep(seconds))
