"""The gate: every system call of every process passes through it, in the same order.

The contexts of agents call the gate from the loop, and connections call it for the requests from their sockets. The
gate checks that the process may make the call, counts the call, and runs its handler. A handler answers immediately, or
returns a coroutine if it has to wait. Of the fields of a call, the gate checks only the types, and only for agents
(`kernel.lib.call_checks`): the decoder has checked the fields of a call from a socket.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from threading import get_ident
from types import CoroutineType
from typing import Any, Protocol

from ipc.errors import InvalidCall, Killed, LimitExceeded, LlmosError, NotFound, NotPermitted, facts_of
from ipc.foreign import class_name
from ipc.syscalls import (
    Attach,
    Backup,
    Call,
    KillTask,
    Logs,
    Nice,
    PeekMailbox,
    Receive,
    ReleaseLock,
    ReleasePermit,
    Reply,
    Resume,
    Send,
    SetPolicy,
    Shutdown,
    Submit,
    Suspend,
    Syscall,
    Threads,
    WriteLog,
)
from kernel.core.fiber import RUNNING
from kernel.core.process import Process, Thread
from kernel.core.stream import Stream
from kernel.lib.call_checks import Check, check_call, check_of

CALLS_PER_TURN = 128  # after so many calls a process gives up the loop, even if each call could finish immediately
MAX_NAMES = 1_000  # of errors that are counted by name: agents name their own
OTHERS = "others"


NOT_A_THREAD = (
    "a context works in the threads of its own process only: in a worker thread, such as that of `asyncio.to_thread`, "
    "call `ctx.from_thread(function, *arguments)`"
)

Handler = Callable[..., Any]

CLIENTS_ONLY: frozenset[type[Syscall]] = frozenset({Shutdown, SetPolicy, Submit, Attach, KillTask, Backup})
ALSO_WHILE_DYING: frozenset[type[Syscall]] = frozenset({WriteLog, ReleaseLock, ReleasePermit})

# Their handlers check the fields, most of them by a look, because agents make these calls most often.
CHECKED_BY_HANDLERS: frozenset[type[Syscall]] = frozenset({Send, Call, Reply, Receive})


# A client's calls that do not wait for a process whose task cannot restart now: that may take days.
ABOUT_A_LIVING_PROCESS: frozenset[type[Syscall]] = frozenset({Logs, Threads, PeekMailbox, Suspend, Resume, Nice})


class SystemCalls(Protocol):
    """Makes the calls of a context. This is the gate; for a durable process it is the replay, which calls the gate."""

    async def call(self, process: Process, call: Syscall) -> Any: ...

    def call_now(self, process: Process, call: Syscall) -> Any: ...


class RestartWaiter(Protocol):
    """Durable processes that have yet to restart: see `kernel.durable.pending_restarts`."""

    async def wait_for_restart(self, error: LlmosError) -> bool:
        """If the process that `error` did not find is yet to restart, wait until it has restarted or never will.

        Returns whether the call has waited. If so, the caller makes the call again.
        """

    def refuse_unstarted(self, error: LlmosError) -> None:
        """Raises `UnknownProcess` if the task of the process that `error` did not find cannot restart now."""


class Steps(Protocol):
    """The dispatcher, as the gate sees it. `running` is the thread whose step runs now, or ran last."""

    running: Thread


class CallEntry:
    """One kind of system call: its handler, how often it was made, and whether only clients may make it.

    `unobserved` is the handler as it was registered. `handler` is the same handler, or an observer that calls it.
    `check` checks the fields of an agent's call; None if the handler does. `examined`: whether an agent's call needs
    more than the handler, so that the most frequent calls pay for one look.
    """

    __slots__ = ("check", "clients_only", "count", "examined", "handler", "unobserved")

    def __init__(self, kind: type[Syscall], handler: Handler) -> None:
        self.handler = self.unobserved = handler
        self.count = 0
        self.clients_only = kind in CLIENTS_ONLY
        self.check: Check | None = None if kind in CHECKED_BY_HANDLERS else self._first_check
        self.examined = self.clients_only or self.check is not None

    def _first_check(self, call: Syscall) -> None:
        """Compile the check at the first call, so that the daemon's start does not wait for all of them."""
        self.check = check_of(type(call))
        self.check(call)


class Gate:
    """Has an entry for each kind of call. Counts calls, errors by name, and the limits that were reached.

    `pending_restarts` knows the durable processes that have yet to restart. It is None while there is no such process.
    """

    def __init__(self) -> None:
        self._entries: dict[type[Syscall], CallEntry] = {}
        self.errors: Counter[str] = Counter()
        self.limits: Counter[str] = Counter()
        self.pending_restarts: RestartWaiter | None = None
        self._loop_thread = get_ident()
        self.steps: Steps  # `Kernel._connect` sets it

    def count_error(self, error: BaseException) -> None:
        """Count an error that answered a call or ended a process, by its name. Count its limit, too, if it has one."""
        name = class_name(error)
        if len(self.errors) >= MAX_NAMES and name not in self.errors:
            name = OTHERS
        self.errors[name] += 1
        if type(error) is LimitExceeded and type(limit := facts_of(error).get("limit")) is str:
            self.limits[limit if limit in self.limits or len(self.limits) < MAX_NAMES else OTHERS] += 1

    @property
    def calls(self) -> dict[str, int]:
        """How often each kind of call was made, by name."""
        return {kind.__name__: entry.count for kind, entry in self._entries.items() if entry.count}

    def register(self, handlers: dict[type[Syscall], Handler]) -> None:
        """Add the calls of one subsystem, each with its handler. A handler takes the process and the call."""
        self._entries.update((kind, CallEntry(kind, handler)) for kind, handler in handlers.items())

    def handler(self, kind: type[Syscall]) -> Handler:
        """The handler of this kind of call, to restore the effects of a recorded call. Observers are not called."""
        return self._entries[kind].unobserved

    def observe(self, observer: Handler | None) -> None:
        """Call `observer` with each handler and its arguments in place of the handler; None removes the observer.

        The observer replaces the handlers in the entries, so that a call costs nothing extra without an observer.
        """
        for entry in self._entries.values():
            entry.handler = entry.unobserved if observer is None else partial(observer, entry.unobserved)

    def enter(self, process: Process, call: Syscall, stream: Stream | None = None, await_restarts: bool = True) -> Any:
        """Make `call` for `process`. Returns the answer, or a coroutine that returns it. Raises the errors of the call.

        `stream` takes the events of the call. If the call names a process that has yet to restart, the call waits
        for that process if `await_restarts` is set, and fails otherwise.
        """
        if self.pending_restarts is not None and await_restarts:
            return self._enter_after_restarts(process, call, stream)
        entry = self._entries[type(call)]
        if process.dying or entry.clients_only:
            _permit(process, type(call))
        process.calls += 1
        entry.count += 1
        handler = entry.handler
        return handler(process, call) if stream is None else handler(process, call, stream)

    async def call(self, process: Process, call: Syscall) -> Any:
        """Make `call` from a thread of `process` and wait for the answer.

        Gives up the loop before every `CALLS_PER_TURN`th call. Raises `InvalidCall` in other tasks and threads.
        """
        if get_ident() != self._loop_thread:
            raise InvalidCall(NOT_A_THREAD)
        process.calls = calls = process.calls + 1
        if not calls % CALLS_PER_TURN:
            if type(call) in ALSO_WHILE_DYING:
                return await self._call_then_give_way(process, call)
            await asyncio.sleep(0)  # before the call: a cancellation after it would lose its answer, such as a message
        try:
            entry = self._entries[type(call)]  # as in `enter`, inlined for speed: every call of an agent passes here
            if process.dying or entry.examined:
                if process.dying or entry.clients_only:
                    _permit(process, type(call))
                if entry.check is not None:
                    entry.check(call)
            entry.count += 1
            handler = entry.handler
            answer = handler(process, call)
            if type(answer) is not CoroutineType:
                return answer
            if self.steps.running.state is not RUNNING:  # only here, because only a wait needs a thread
                answer.close()
                raise InvalidCall(NOT_A_THREAD)
            return await answer
        except LlmosError as error:
            if self.pending_restarts is not None and await self.pending_restarts.wait_for_restart(error):
                return await self.call(process, call)
            self.count_error(error)
            raise

    async def call_by(self, process: Process, call: Syscall, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Count `call` as the method `call` does, but await `make()`. The caller has checked the fields of `call`."""
        process.calls += 1
        entry = self._entries[type(call)]
        if process.dying or entry.clients_only:
            _permit(process, type(call))
        entry.count += 1
        try:
            return await make()
        except LlmosError as error:
            if self.pending_restarts is not None and await self.pending_restarts.wait_for_restart(error):
                return await self.call_by(process, call, make)
            self.count_error(error)
            raise

    async def answer(self, process: Process, call: Syscall) -> Any:
        """Run the handler of `call` and return its answer. Use this if `call` was checked and counted already."""
        answer = self._entries[type(call)].handler(process, call)
        return await answer if type(answer) is CoroutineType else answer

    async def _enter_after_restarts(self, process: Process, call: Syscall, stream: Stream | None) -> Any:
        """Do the same as `enter`, and wait for a process that the call names and that has yet to restart."""
        while True:
            try:
                answer = self.enter(process, call, stream, await_restarts=False)
                return await answer if type(answer) is CoroutineType else answer
            except NotFound as error:
                if self.pending_restarts is None:
                    raise
                if type(call) in ABOUT_A_LIVING_PROCESS:
                    self.pending_restarts.refuse_unstarted(error)
                if not await self.pending_restarts.wait_for_restart(error):
                    raise

    async def _call_then_give_way(self, process: Process, call: Syscall) -> None:
        """Make `call`, a call of `ALSO_WHILE_DYING`, and then give up the loop.

        Such a call has no answer that a cancellation could lose. But a cancellation before the call could lose the
        call, and a resource that it gives back would stay held.
        """
        process.calls -= 1  # `call_now` counts the call again
        self.call_now(process, call)
        await asyncio.sleep(0)

    def call_now(self, process: Process, call: Syscall) -> Any:
        """Make `call` for code of `process` that cannot await. The handler of `call` must never wait."""
        if get_ident() != self._loop_thread:
            raise InvalidCall(NOT_A_THREAD)
        try:
            check_call(call)
            return self.enter(process, call, await_restarts=False)
        except LlmosError as error:
            self.count_error(error)
            raise


def _permit(process: Process, kind: type[Syscall]) -> None:
    """Raises `Killed` or `NotPermitted` if `process` may not make a call of this kind."""
    if process.dying and kind not in ALSO_WHILE_DYING:
        raise Killed(f"process {process.pid} is ending ({process.dying}) and may make no more calls", pid=process.pid)
    if kind in CLIENTS_ONLY and not process.is_client:
        raise NotPermitted(f"process {process.pid} is an agent and may not call {kind.__name__}; only clients may")
