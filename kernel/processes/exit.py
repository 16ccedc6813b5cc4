"""The end of a process: cancels its threads, kills its children, sets its exit status and calls its watchers.

The gate calls `wait`; the lifecycle and every subsystem that ends a process call the rest. A process is dying until its
last thread and child are gone; then it is buried. The kernel never runs a task that waits for the last one: each thread
and child that ends checks whether it was the last. One timer bounds the `finally` blocks of threads.
`kernel.processes.outcome` maps the end of the main thread to the exit status.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, cast

import msgspec
import structlog

from ipc.errors import DeadlineExceeded, ErrorInfo, InvalidCall, Killed, TimedOut, to_wire
from ipc.syscalls import ExitStatus, Wait
from kernel.core.fiber import PARK, ZOMBIE
from kernel.core.process import Process, Thread
from kernel.core.process_table import ProcessTable
from kernel.core.timers import Timer
from kernel.core.waits import EndOf
from kernel.dispatch import deadlock
from kernel.dispatch.dispatcher import Dispatcher
from kernel.gate import Gate
from kernel.lib.failures import traceback_text
from kernel.lib.validation import check_timeout
from kernel.processes.outcome import INTENDED

GRACE = 2.0  # seconds for the `finally` blocks of a cancelled thread

log = structlog.get_logger("kernel.processes")


class ProcessExit:
    """Ends processes and threads.

    The `on_end` hooks are called with each process that ended, before the watchers of that process. The `on_thread_end`
    hooks are called with each thread that ended. `exits` counts the ends of processes by reason.
    """

    def __init__(self, table: ProcessTable, dispatcher: Dispatcher, gate: Gate) -> None:
        self._table = table
        self._dispatcher = dispatcher
        self._loop = dispatcher.loop
        self._instruments = dispatcher.instruments
        self.on_end: list[Callable[[Process], None]] = []
        self.on_thread_end: list[Callable[[Thread], None]] = []
        self.exits: Counter[str] = Counter()
        gate.register({Wait: self.wait})

    # ---- system calls

    def wait(self, process: Process, call: Wait) -> ExitStatus | Coroutine[Any, Any, ExitStatus]:
        target = self._table.find(call.pid)
        if target is process:
            raise InvalidCall(f"process {process.pid} cannot wait for its own end")
        timeout = check_timeout(call.timeout)
        if target.status is not None:
            process.critical_path = max(process.critical_path, target.critical_path)
            return target.status
        return self.until_ended(target, timeout, process)

    async def until_ended(self, target: Process, timeout: float | None, waiter: Process | None = None) -> ExitStatus:
        """Wait until `target` has ended, and return its exit status. Raises `TimedOut`, `DeadlockDetected`.

        From then on the critical path of `waiter`, if there is one, is at least as long as that of `target`.
        """
        thread, waited = cast("Thread", asyncio.current_task()), EndOf(target)

        def wake(_: Process) -> None:
            thread.wake()

        target.watch(wake)
        timer = Timer(thread, timeout)
        try:
            while target.status is None:
                if timer.expired:
                    raise TimedOut(f"process {target.pid} did not end within {timeout} s", pid=target.pid)
                thread.waits_for = waited
                deadlock.check(thread)
                await PARK
            if waiter is not None:  # its next calls come after all those of `target`
                waiter.critical_path = max(waiter.critical_path, target.critical_path)
            return target.status
        finally:
            target.unwatch(wake)
            timer.cancel()

    # ---- for the kernel

    def end(self, process: Process, reason: str, why: str) -> None:
        """Begin to kill `process`, with `why` as the text of its error. Does not wait for the process to end."""
        kind = DeadlineExceeded if reason == "deadline" else Killed
        self.finish(process, reason, error=to_wire(kind(why, pid=process.pid)))

    def finish(self, process: Process, reason: str, value: Any = None, error: ErrorInfo | None = None) -> None:
        """Begin to end `process` with this outcome, unless it is dying already. Does not wait for the end."""
        if process.dying:
            return
        if error is not None and reason not in INTENDED:
            error = msgspec.structs.replace(error, data={**error.data, "crash": process.pid})
        process.dying, process.outcome = reason, (value, error)
        if process.timer is not None:
            process.timer.cancel()
            process.timer = None
        for thread in process.threads:
            thread.suspended = False
        self._dispatcher.release(process)
        for thread in tuple(process.threads):
            thread.cancel()
        for child in process.children:
            # In the next turn of the loop, because a long line of descendants would make the recursion too deep.
            self._loop.call_soon(self.end, child, "killed", f"its parent, process {process.pid}, ended")
        if process.threads:
            process.timer = self._loop.call_later(GRACE, self._grace_over, process)
        self._bury_if_empty(process)

    def thread_gone(self, future: asyncio.Future[Any]) -> Process:
        """Remove a thread that ended, or was abandoned, from its process. Returns the process."""
        thread = cast("Thread", future)
        process = thread.process
        process.drop_thread(thread)
        process.cpu_of_ended += thread.cpu
        if thread.suspended:  # it suspended itself, and ended before its next wait
            self._dispatcher.release(process, thread)
        for subsystem in self.on_thread_end:
            try:
                subsystem(thread)
            except BaseException as error:
                _report(error, process)
        if process.dying:
            if not thread.cancelled():
                thread.exception()  # marks the exception as retrieved, or asyncio would log it
            self._bury_if_empty(process)
        else:
            deadlock.thread_ended(process)
        return process

    # ---- inside

    def _grace_over(self, process: Process) -> None:
        """Abandon the threads that ignored their cancellation. Wait again if the loop has yet to deliver one."""
        process.timer = None
        if any(thread.about_to_be_cancelled for thread in process.threads):
            process.timer = self._loop.call_later(GRACE, self._grace_over, process)
            return
        for thread in tuple(process.threads):
            if not thread.done():
                log.error(
                    "a thread ignored its cancellation and is abandoned", pid=process.pid, thread=thread.get_name()
                )
                thread.abandon()

    def _bury_if_empty(self, process: Process) -> None:
        """Bury `process` if it is dying and has no threads and no children left. Then do the same with its parent."""
        following: Process | None = process
        while following is not None and following.dying and not (following.threads or following.children):
            if following.ended:
                return
            dead, following = following, following.parent
            self._bury(dead)

    def _bury(self, process: Process) -> None:
        value, error = process.outcome
        process.outcome = (None, None)
        process.status = ExitStatus(process.pid, process.program, process.dying, value, error, process.usage())
        process.ended_at = time.monotonic()
        process.suspensions = None
        if process.timer is not None:
            process.timer.cancel()
            process.timer = None
        parent, process.parent = process.parent, None
        if parent is not None and parent.children:
            parent.children.pop(process, None)
        self._table.bury(process)
        self._instruments.notify_state(process, ZOMBIE)
        if not process.is_client:
            self.exits[process.dying] += 1
            age = round(process.ended_at - process.started, 3)
            log.debug("process ended", pid=process.pid, program=process.program, reason=process.dying, age=age)
        for subsystem in self.on_end:
            try:
                subsystem(process)
            except BaseException as error:
                _report(error, process)
        process.stream, process.args = None, {}  # after the hooks, of which one writes the last printed lines
        process.code = process.accepts = None  # ended processes are remembered: their modules and data need not be
        watchers, process.watchers = process.watchers, ()
        for watcher in watchers:
            try:
                watcher(process)
            except BaseException as error:
                _report(error, process)


def _report(error: BaseException, process: Process) -> None:
    """Write an error of a hook or a watcher to the log. The others are called nevertheless."""
    log.error("the end of a process failed", pid=process.pid, exception=traceback_text(error, whole=True))


def deadline_passed(seconds: float) -> str:
    """The text of the error of a process whose deadline passed."""
    return f"the deadline of {seconds:g} s passed, so the daemon ended the process"
