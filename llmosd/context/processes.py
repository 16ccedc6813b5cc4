"""Processes and threads, as an agent deals with them: others, more threads of its own, sleep, and its output."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from ipc.codec import reveal
from ipc.errors import LlmosError, from_wire
from ipc.syscalls import (
    Emit,
    ExitStatus,
    Kill,
    Limits,
    Nice,
    Resume,
    Sleep,
    Spawn,
    StartThread,
    Suspend,
    Wait,
    WriteLog,
)
from llmosd.context.base import Caller

if TYPE_CHECKING:  # who only talks to a daemon, or only marks agents, need not pay for asyncio
    import asyncio


class ProcessMethods(Caller):
    """Spawn, wait, kill, suspend, resume, nice and sleep; threads; emit and log."""

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
        """Do nothing for `seconds`. A durable agent sleeps only the rest if the daemon is restarted meanwhile."""
        return self._gate.call(self._process, Sleep(seconds))

    def start_thread(self, coro: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Future[Any]:
        """Run `coro` as one more thread of this process: same memory, same mailbox, and it ends with the process.

        What comes back can be awaited for its result, and cancelled. If the thread fails while nobody awaits it, the
        process ends with its error: no failure goes unseen.
        """
        try:
            thread: asyncio.Future[Any] = self._gate.call_now(self._process, StartThread(coro, name))
        except LlmosError:
            if isinstance(coro, Coroutine):
                coro.close()
            raise
        return thread

    def emit(self, value: Any) -> Coroutine[Any, Any, None]:
        """Hand `value` to whoever submitted the task; waits while they are behind. Nobody there: it is gone."""
        return self._gate.call(self._process, Emit(value))

    def log(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """Add a line to the log of this process."""
        self._gate.call_now(self._process, WriteLog(level, event, fields))
