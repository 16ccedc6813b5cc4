"""Other processes and time, as an agent deals with them."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any

from ipc.codec import reveal
from ipc.errors import from_wire
from ipc.syscalls import (
    Checkpoint,
    DrawRandom,
    ExitStatus,
    GetTime,
    Kill,
    Limits,
    Nice,
    Resume,
    Sleep,
    Spawn,
    Suspend,
    Wait,
)
from llmosd.context.base import Caller


class ProcessCalls(Caller):
    """Spawn, wait, kill, suspend, resume, nice and sleep; time, chance and checkpoints."""

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

    def time(self) -> Coroutine[Any, Any, float]:
        """Seconds since the epoch. A durable agent is told the same again when it is replayed."""
        return self._gate.call(self._process, GetTime())

    def random(self) -> Coroutine[Any, Any, float]:
        """A random number from 0 to 1, 1 excluded. A durable agent is given the same again when it is replayed."""
        return self._gate.call(self._process, DrawRandom())

    async def checkpoint(self, state: Any = None) -> Any:
        """Keep `state` in place of all calls so far, and return it; for an agent that is not durable, just return it.

        After a restart a durable agent runs from its top, and calls before its first checkpoint are made anew, as those
        of then are forgotten. That checkpoint returns the state that was kept last, whatever it is given, and what was
        called after that is replayed. So a loop that may be long goes

            done = await ctx.checkpoint([])
            while ...:
                ...
                done = await ctx.checkpoint(done)

        Costs one fsync, whatever the size of what it cuts. Names, subscriptions and memory stay. Raises
        `CheckpointRefused` while the process has other threads, or children that run; `NotEncodable`.
        """
        return reveal(await self._gate.call(self._process, Checkpoint(state)))
