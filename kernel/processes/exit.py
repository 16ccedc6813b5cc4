"""The end of a process: cancels its threads, kills its children, sets its exit status and calls its watchers.

The gate calls `wait`; the lifecycle and every subsystem that ends a process call the rest. A process is dying until its
last thread and child are gone; then it is buried. Descendants end in slices, each in a turn of the loop. The kernel
never runs a task that waits for the last one: each thread and child that ends checks whether it was the last. One timer
bounds the `finally` blocks of threads.
`kernel.processes.outcome` maps the end of the main thread to the exit status.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from time import perf_counter
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
SLICE = 0.002  # seconds of one turn of the loop for the end of descendants, so that everybody else gets turns, too
BURIALS = 64  # processes along one line of ancestors that are buried in one turn

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
        self.ending_descendants: deque[Process] = deque()  # their parents are dying, and they will be
        self._slice_scheduled = False
        self._dying: deque[tuple[float, Process]] = deque()  # have threads, and when the grace time of these is over
        self._grace_timer: asyncio.TimerHandle | None = None
        gate.register({Wait: self.wait})

    # ---- system calls

    def wait(self, process: Process, call: Wait) -> ExitStatus | Coroutine[Any, Any, ExitStatus]:
        target = self._table.alive.get(call.pid) or self._table.ended.get(call.pid)
        if target is None:
            outcome = self._table.outcomes.take(process.pid, call.pid)
            if outcome is None:
                raise self._table.forgotten(call.pid)
            process.critical_path = max(process.critical_path, outcome.critical_path)
            return outcome.status
        if target is process:
            raise InvalidCall(f"process {process.pid} cannot wait for its own end")
        timeout = check_timeout(call.timeout)
        if target.status is not None:
            _note_wait(process, target)
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
            if waiter is not None:
                _note_wait(waiter, target)
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
        if process.children:
            # In later turns of the loop, because there may be many, and a long line of them would recurse too deeply.
            self.ending_descendants.extend(process.children)
            if not self._slice_scheduled:
                self._slice_scheduled = True
                self._loop.call_soon(self._end_descendants)
        if process.threads:
            self._dying.append((self._loop.time() + GRACE, process))
            if self._grace_timer is None:
                self._grace_timer = self._loop.call_later(GRACE, self._grace_over)
        self._bury_if_empty(process)

    def check_ancestors(self, process: Process) -> None:
        """If an ancestor of `process` is dying, end `process` now, and raise `Killed`.

        Called before a spawn while descendants of a dying process have yet to end. A program that spawns faster than
        its processes end would never end otherwise.
        """
        ancestor = process.parent
        while ancestor is not None:
            if ancestor.dying:
                why = f"its ancestor, process {ancestor.pid}, ended"
                self.end(process, "killed", why)
                raise Killed(f"process {process.pid} may spawn nothing: {why}", pid=process.pid)
            ancestor = ancestor.parent

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

    def _end_descendants(self) -> None:
        """Begin to end as many descendants of dying processes as fit into a slice of this turn of the loop."""
        descendants, until = self.ending_descendants, perf_counter() + SLICE
        try:
            while descendants:
                child = descendants.popleft()
                self.end(child, "killed", f"its parent, process {child.parent_pid}, ended")
                if perf_counter() >= until:
                    break
        finally:  # also if a hook raises: the other descendants must end
            self._slice_scheduled = bool(descendants)
            if descendants:
                self._loop.call_soon(self._end_descendants)

    def _grace_over(self) -> None:
        """Abandon the threads that ignored their cancellation for the grace time."""
        self._grace_timer = None
        dying, now, until = self._dying, self._loop.time(), perf_counter() + SLICE
        while dying and (dying[0][1].ended or dying[0][0] <= now):
            process = dying.popleft()[1]
            if any(thread.about_to_be_cancelled for thread in process.threads):  # the loop has yet to cancel one
                dying.append((now + GRACE, process))
            else:
                self._abandon_threads(process)
            if perf_counter() >= until:
                break
        if dying:
            self._grace_timer = self._loop.call_later(max(dying[0][0] - now, 0.0), self._grace_over)

    def _abandon_threads(self, process: Process) -> None:
        for thread in tuple(process.threads):
            if not thread.done():
                log.error(
                    "a thread ignored its cancellation and is abandoned", pid=process.pid, thread=thread.get_name()
                )
                thread.abandon()

    def _bury_if_empty(self, process: Process) -> None:
        """Bury `process` if it is dying and has no threads and no children left. Then do the same with its parent."""
        following: Process | None = process
        for _ in range(BURIALS):
            if following is None or not following.dying or following.threads or following.children or following.ended:
                return
            dead, following = following, following.parent
            self._bury(dead)
        if following is not None:
            self._loop.call_soon(self._bury_if_empty, following)

    def _bury(self, process: Process) -> None:
        value, error = process.outcome
        process.outcome = (None, None)
        process.status = ExitStatus(process.pid, process.program, process.dying, value, error, process.usage())
        process.ended_at = time.monotonic()
        process.suspensions = None
        tree = process.tree
        if tree is not None:
            if tree.outer is None:
                tree.alive -= 1
            else:
                tree.remove()
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


def _note_wait(waiter: Process, target: Process) -> None:
    """Take note that `waiter` has waited for the end of `target`: its next calls come after all those of `target`."""
    waiter.critical_path = max(waiter.critical_path, target.critical_path)
    if target.parent_pid == waiter.pid:
        target.awaited = True


def _report(error: BaseException, process: Process) -> None:
    """Write an error of a hook or a watcher to the log. The others are called nevertheless."""
    log.error("the end of a process failed", pid=process.pid, exception=traceback_text(error, whole=True))


class RestOfDeadline(float):
    """The seconds that are left of a deadline of `stated` seconds."""

    __slots__ = ("stated",)
    stated: float

    def __new__(cls, left: float, stated: float) -> RestOfDeadline:
        self = super().__new__(cls, left)
        self.stated = stated
        return self


def deadline_passed(seconds: float) -> str:
    """The text of the error of a process whose deadline passed; it names the deadline that the client stated."""
    stated = seconds.stated if isinstance(seconds, RestOfDeadline) else seconds
    return f"the deadline of {stated:g} s passed, so the daemon ended the process"
