"""The gate: every system call of every process passes here, in the same order.

Called by contexts (in the loop) and connections (from a socket). Who is this, may it, is it within its limits, count
it, do it. A handler answers at once, or returns a coroutine when it has to wait. The gate itself never waits.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import Any, Protocol

from ipc.errors import Killed, LimitExceeded, LlmosError, NotFound, NotPermitted
from ipc.syscalls import Attach, Backup, ReleaseLock, ReleasePermit, SetPolicy, Shutdown, Submit, Syscall, WriteLog
from kernel.core.process import Process
from kernel.core.stream import Stream

BURST = 128  # of a process's calls, the one that gives up the loop although it may finish at once

Handler = Callable[..., Any]

CLIENTS_ONLY: frozenset[type[Syscall]] = frozenset({Shutdown, SetPolicy, Submit, Attach, Backup})
ALSO_WHILE_DYING: frozenset[type[Syscall]] = frozenset({WriteLog, ReleaseLock, ReleasePermit})


class SystemCalls(Protocol):
    """What a context makes calls through: the gate, or for a durable process what stands before it."""

    async def call(self, process: Process, call: Syscall) -> Any: ...

    def call_now(self, process: Process, call: Syscall) -> Any: ...


class RestartWaiter(Protocol):
    """Durable processes that are still to begin again: see `kernel.durable.pending_restarts`."""

    async def resolve(self, error: LlmosError) -> bool:
        """Wait for the process that `error` does not find. Whether it came."""


class CallEntry:
    """One system call: who handles it, how often it was made, and whether only clients may.

    `handler` is `plain`, or an observer around it.
    """

    __slots__ = ("clients_only", "count", "handler", "plain")

    def __init__(self, kind: type[Syscall], handler: Handler) -> None:
        self.handler = self.plain = handler
        self.count = 0
        self.clients_only = kind in CLIENTS_ONLY


class Gate:
    """Has a door for each call, and counts calls, failures by name, and limits that were reached.

    `arrivals`: durable processes that are still to begin again, while there are any.
    """

    def __init__(self) -> None:
        self._doors: dict[type[Syscall], CallEntry] = {}
        self.errors: Counter[str] = Counter()
        self.limits: Counter[str] = Counter()
        self.arrivals: RestartWaiter | None = None

    def count_error(self, error: BaseException) -> None:
        """Count what a call was answered with, or a process ended with, by its name; a limit by its own."""
        self.errors[type(error).__name__] += 1
        if isinstance(error, LimitExceeded):
            self.limits[error.data["limit"]] += 1

    @property
    def calls(self) -> dict[str, int]:
        """How often each call was made, by its name."""
        return {kind.__name__: door.count for kind, door in self._doors.items() if door.count}

    def register(self, handlers: dict[type[Syscall], Handler]) -> None:
        """Add the calls of one subsystem: each handler takes the process and the call."""
        self._doors.update((kind, CallEntry(kind, handler)) for kind, handler in handlers.items())

    def handler(self, kind: type[Syscall]) -> Handler:
        """What answers calls of this kind, for those who restore what a call did."""
        return self._doors[kind].plain

    def observe(self, observer: Handler | None) -> None:
        """Call `observer` with each handler and what it would be called with; with None, handlers are called again.

        The handlers in the doors are exchanged, so that while nobody observes a call pays nothing.
        """
        for door in self._doors.values():
            door.handler = door.plain if observer is None else partial(observer, door.plain)

    def enter(self, process: Process, call: Syscall, stream: Stream | None = None, late: bool = False) -> Any:
        """Make `call` for `process`: the answer, or a coroutine that will return it. Raises what the call raises.

        `stream` takes the events of a call that has any. `late`: do not wait for processes that are still to come.
        """
        if self.arrivals is not None and not late:
            return self._enter_late(process, call, stream)
        door = self._doors[type(call)]
        if process.dying or door.clients_only:
            _permit(process, type(call))
        process.calls += 1
        door.count += 1
        handler = door.handler
        return handler(process, call) if stream is None else handler(process, call, stream)

    async def call(self, process: Process, call: Syscall) -> Any:
        """Make `call` from a thread of `process`, waiting if need be. Before every `BURST`th it gives up the loop."""
        process.calls = calls = process.calls + 1
        if not calls % BURST:
            if type(call) in ALSO_WHILE_DYING:
                return await self._give_way_after(process, call)
            await asyncio.sleep(0)  # not after the call: who is cancelled here would lose the answer, such as a message
        try:
            door = self._doors[type(call)]  # as in `enter`, spelled out: all calls of agents come this way
            if process.dying or door.clients_only:
                _permit(process, type(call))
            door.count += 1
            handler = door.handler
            answer = handler(process, call)
            return await answer if type(answer) is CoroutineType else answer
        except LlmosError as error:
            if self.arrivals is not None and await self.arrivals.resolve(error):
                return await self.call(process, call)
            self.count_error(error)
            raise

    async def call_by(self, process: Process, call: Syscall, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Make `call` as `call` does, but by what `make` returns in place of its handler."""
        process.calls += 1
        door = self._doors[type(call)]
        if process.dying or door.clients_only:
            _permit(process, type(call))
        door.count += 1
        try:
            return await make()
        except LlmosError as error:
            if self.arrivals is not None and await self.arrivals.resolve(error):
                return await self.call_by(process, call, make)
            self.count_error(error)
            raise

    async def answer(self, process: Process, call: Syscall) -> Any:
        """What the handler of `call` answers. For those who have passed the gate with it."""
        answer = self._doors[type(call)].handler(process, call)
        return await answer if type(answer) is CoroutineType else answer

    async def _enter_late(self, process: Process, call: Syscall, stream: Stream | None) -> Any:
        """The same as `enter` while processes are to come that the call may ask for."""
        while True:
            try:
                answer = self.enter(process, call, stream, late=True)
                return await answer if type(answer) is CoroutineType else answer
            except NotFound as error:
                if self.arrivals is None or not await self.arrivals.resolve(error):
                    raise

    async def _give_way_after(self, process: Process, call: Syscall) -> None:
        """For what gives back what is held, and has no answer: who is cancelled before it would go on holding it."""
        process.calls -= 1  # it is counted again
        self.call_now(process, call)
        await asyncio.sleep(0)

    def call_now(self, process: Process, call: Syscall) -> Any:
        """Make `call`, which never waits, for a thread of `process` that does not await it."""
        try:
            return self.enter(process, call, late=True)
        except LlmosError as error:
            self.count_error(error)
            raise


def _permit(process: Process, kind: type[Syscall]) -> None:
    """Raises `Killed` and `NotPermitted`."""
    if process.dying and kind not in ALSO_WHILE_DYING:
        raise Killed(f"process {process.pid} is ending ({process.dying}) and makes no more calls", pid=process.pid)
    if kind in CLIENTS_ONLY and not process.is_client:
        raise NotPermitted(f"an agent may not call {kind.__name__}; a client may")
