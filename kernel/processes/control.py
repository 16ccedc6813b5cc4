"""The control subsystem: suspends, resumes and kills processes and threads in any state, and sets their priorities.

The gate calls its handlers. A suspended thread stops at its next system call or `await`; its generation stops after the
step that the driver runs. A suspension never loses a message or a token. `exit` implements the end of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ipc.errors import InvalidCall, UnknownProcess
from ipc.syscalls import ExitStatus, Kill, Nice, Resume, Suspend, ThreadInfo
from ipc.syscalls import Threads as ListThreads
from kernel.core.fiber import READY, SUSPENDED
from kernel.core.process import Process, Thread
from kernel.core.process_table import ProcessTable
from kernel.core.suspension import Suspension
from kernel.dispatch import deadlock
from kernel.dispatch.dispatcher import Dispatcher
from kernel.gate import Gate
from kernel.lib.pages import from_place, shortened
from kernel.lib.validation import HIGHEST, LOWEST, check_priority
from kernel.processes.exit import ProcessExit
from kernel.processes.threads import ThreadSubsystem

Wait = Coroutine[Any, Any, None]
Listener = Callable[[Process, Thread | None], Wait | None]


class Control:
    """Handles `Suspend`, `Resume`, `Nice`, `Kill` and `Threads`.

    The hooks `on_suspend`, `on_resume` and `on_nice` are called with the process, and with the thread if the call is
    about one thread only. If a hook returns a coroutine, this coroutine is awaited before the call is answered. When a
    client kills a process, the `on_kill` hooks are awaited with it after its end and before the answer. They raise the
    error of the client if the kill has no lasting effect. The `on_missing` hooks are asked about a pid that no process
    has: the first answer that is not None answers the call.
    """

    def __init__(
        self,
        table: ProcessTable,
        dispatcher: Dispatcher,
        process_exit: ProcessExit,
        threads: ThreadSubsystem,
        gate: Gate,
    ) -> None:
        self._table = table
        self._dispatcher = dispatcher
        self._instruments = dispatcher.instruments
        self._process_exit = process_exit
        self._threads = threads
        self.on_suspend: list[Listener] = []
        self.on_resume: list[Listener] = []
        self.on_nice: list[Listener] = []
        self.on_kill: list[Callable[[Process], Wait]] = []
        self.on_missing: list[Callable[[Process, int], Coroutine[Any, Any, ExitStatus] | None]] = []
        gate.register({Suspend: self.suspend, Resume: self.resume, Nice: self.nice, Kill: self.kill})
        gate.register({ListThreads: self.threads})

    def suspend(self, process: Process, call: Suspend) -> Wait | None:
        target = self._table.get(call.pid)
        if target.is_client:
            raise InvalidCall(f"process {target.pid} is the connection of a client; suspend its tasks instead")
        thread = None if call.thread is None else target.thread(call.thread)
        if target.dying or (target.suspended if thread is None else thread.suspended):
            return None
        self._dispatcher.hold(target, thread)
        target.suspensions = (target.suspensions or {}) | {thread: Suspension(process.pid, process.program)}
        if thread is None:
            self._instruments.notify_state(target, SUSPENDED)
        return _notify(self.on_suspend, target, thread)

    def resume(self, process: Process, call: Resume) -> Wait | None:
        target = self._table.get(call.pid)
        thread = None if call.thread is None else target.thread(call.thread)
        if not (target.suspended if thread is None else thread.suspended):
            return None
        self._dispatcher.release(target, thread)
        if target.suspensions is not None:
            target.suspensions.pop(thread, None)
        if thread is None:
            self._instruments.notify_state(target, READY)
        answer = _notify(self.on_resume, target, thread)
        deadlock.resumed(target)
        return answer

    def nice(self, process: Process, call: Nice) -> int | Coroutine[Any, Any, int]:
        target = self._table.get(call.pid)
        thread = None if call.thread is None else target.thread(call.thread)
        priority = call.priority
        if call.relative:
            now = target.priority if thread is None else thread.priority
            priority = max(LOWEST, min(now + priority, HIGHEST))
        check_priority(priority)
        if thread is None:
            target.priority = priority
        for ranked in tuple(target.threads) if thread is None else (thread,):
            self._dispatcher.reprioritise(ranked, priority)
        wait = _notify(self.on_nice, target, thread)
        return priority if wait is None else _after(wait, priority)

    def kill(self, process: Process, call: Kill) -> ExitStatus | Coroutine[Any, Any, ExitStatus | None] | None:
        try:
            target = self._table.find(call.pid)
        except UnknownProcess:
            if call.thread is not None or (answer := self._kill_missing(process, call.pid)) is None:
                raise
            return answer
        if call.thread is not None:
            return self._threads.kill(target.thread(call.thread))
        if target.status is None:
            if target.parent_pid == process.pid and not target.dying:
                target.awaited = True  # it has no result, and its parent knows how it ends
            self._process_exit.end(target, "killed", f"killed by process {process.pid} ({process.program})")
        if process.is_client and self.on_kill:
            return self._killed(target)
        return target.status if target.status is not None else self._process_exit.until_ended(target, None)

    def _kill_missing(self, process: Process, pid: int) -> Coroutine[Any, Any, ExitStatus] | None:
        answers = (listener(process, pid) for listener in self.on_missing)
        return next((answer for answer in answers if answer is not None), None)

    async def _killed(self, target: Process) -> ExitStatus:
        status = target.status if target.status is not None else await self._process_exit.until_ended(target, None)
        await _all_of([listener(target) for listener in self.on_kill])
        return status

    def threads(self, process: Process, call: ListThreads) -> list[ThreadInfo]:
        return [_row(thread) for thread in from_place(self._table.get(call.pid).threads, call.start, ListThreads)]


def _notify(listeners: list[Listener], process: Process, thread: Thread | None) -> Wait | None:
    """Call `listeners`. Returns a coroutine that awaits the coroutines they returned, or None if there are none."""
    waits = [wait for listener in listeners if (wait := listener(process, thread)) is not None]
    return _all_of(waits) if waits else None


async def _all_of(waits: list[Wait]) -> None:
    for wait in waits:
        await wait


async def _after(wait: Wait, priority: int) -> int:
    await wait
    return priority


def _row(thread: Thread) -> ThreadInfo:
    return ThreadInfo(
        path=thread.path,
        name=shortened(thread.get_name()),
        state=thread.shown_state(),
        waits_for=shortened(thread.shown_wait()),
        priority=thread.priority,
        cpu_seconds=thread.cpu,
    )
