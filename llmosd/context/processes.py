"""Processes and threads: the calls of an agent to start and control them, to sleep, and to show output."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
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
from llmosd.context.base import AgentFunction, Caller, dict_of

if TYPE_CHECKING:  # a program that only uses a client or marks agents should not pay for the import of asyncio
    import asyncio


class ProcessMethods(Caller):
    """Spawn, wait, kill, suspend, resume, nice and sleep; threads; emit and log."""

    __slots__ = ()

    def spawn(
        self,
        program: str | AgentFunction,
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
        """Start a program as a child. Returns the pid of the child.

        `program`: an agent function of this file or of another; a name, which an agent of this file has before all
        others; the path of a file, or `FILE.py:AGENT`; or `MODULE:AGENT`, for a module beside this file or an installed
        one. An agent of this file runs in the version that this process runs, even if the file has changed since.

        The child ends with this process unless `detach`. With `link`, each of the two ends if the other fails.
        `deadline`: seconds after which the child is ended. `name` is registered before the child's first step.
        `priority` and `owner` default to those of this process. `limits` can only make the limits of this process
        stricter. See `ipc.syscalls.Spawn` for all errors.
        """
        call = Spawn(
            self._program_name(program),
            dict_of(args, "args of spawn"),
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
        """Wait until process `pid` has ended, and return its result. Raises its error if it did not end well.

        Also raises `TimedOut` after `timeout` seconds, and `UnknownProcess` for a process that the daemon does not
        remember: `OutcomeForgotten` if it has ended. The daemon remembers your children until you have waited for them,
        and other processes for a while. Spawn those for which you never wait with `detach=True`.
        """
        status: ExitStatus = await self._gate.call(self._process, Wait(pid, timeout))
        if status.error is not None:
            raise from_wire(status.error)
        return reveal(status.value)

    async def kill(self, pid: int) -> None:
        """End process `pid` and its children. Returns when the process has ended. Raises `UnknownProcess`."""
        await self._gate.call(self._process, Kill(pid))

    def suspend(self, pid: int) -> Coroutine[Any, Any, None]:
        """Suspend process `pid`: it stops at its next `await`, and its generations leave their slots."""
        return self._gate.call(self._process, Suspend(pid))

    def resume(self, pid: int) -> Coroutine[Any, Any, None]:
        """Undo `suspend`. It has no effect on a process that is not suspended."""
        return self._gate.call(self._process, Resume(pid))

    def nice(self, pid: int, priority: int, *, relative: bool = False) -> Coroutine[Any, Any, int]:
        """Give process `pid` a priority from -20 to 20, the most urgent. Returns the new priority.

        With `relative`, `priority` is added to the present priority, and the sum is limited to this range.
        """
        return self._gate.call(self._process, Nice(pid, priority, relative))

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Wait for `seconds`. After a restart of the daemon, a durable agent sleeps only for the rest."""
        return self._gate.call(self._process, Sleep(seconds))

    def start_thread(self, coro: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Future[Any]:
        """Run `coro` as a further thread of this process, with the same memory and mailbox. It ends with the process.

        Await the returned future for the result, or cancel it. If the thread fails and nothing awaits the future, the
        process ends with the error, so no failure is lost.
        """
        try:
            thread: asyncio.Future[Any] = self._gate.call_now(self._process, StartThread(coro, name))
        except LlmosError:
            if issubclass(type(coro), Coroutine):
                coro.close()
            raise
        return thread

    def from_thread(self, function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        """Make a call of this context in a worker thread, such as `ctx.from_thread(ctx.send, pid, "done")`.

        The daemon runs `function(*args, **named)`, which may be a coroutine function, in a thread of this process, and
        the worker thread waits for the result. Raises the error of the function, and `Killed` if the process ends.
        """
        from kernel.event_loop.from_thread import run_from_thread

        return run_from_thread(self._process, partial(function, *args, **named))

    def emit(self, value: Any) -> Coroutine[Any, Any, None]:
        """Send `value` to the client that submitted the task, as an event. Waits while the client is behind.

        If no client is attached, the value is dropped. Raises `NotEncodable`, `FrameTooLarge`.
        """
        return self._gate.call(self._process, Emit(value))

    def log(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """Add a line to the log of this process, which `llmos logs` shows. The log holds the last 200 lines."""
        self._gate.call_now(self._process, WriteLog(level, event, fields))
