"""The process subsystem: spawn, wait, kill, suspend, resume, and the end of a process.

Its handlers are called by the gate. A child never outlives its parent unless detached; whatever way a process ends,
its threads are cancelled, its children killed, its waiters answered, and then it is gone from the table.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

import msgspec
import structlog

from ipc.codec import PLAIN, encode, isolate, reveal
from ipc.errors import (
    AgentFailed,
    Busy,
    DeadlineExceeded,
    ErrorInfo,
    InvalidCall,
    Killed,
    LlmosError,
    NotEncodable,
    ShuttingDown,
    TimedOut,
    to_wire,
)
from ipc.messages import Failed, Result
from ipc.syscalls import ExitStatus, Kill, Resume, Spawn, Suspend, Wait
from kernel import deadlock
from kernel.alarms import Alarm
from kernel.dispatcher import Dispatcher
from kernel.gate import Gate
from kernel.process import CLIENT, Process, ProcessTable
from kernel.programs import Program, Programs
from kernel.stream import Stream
from kernel.thread import PARK, Thread
from kernel.waiting import EndOf

GRACE = 2.0  # seconds that the `finally` blocks of a killed thread get
MAX_PROCESSES = 200_000

log = structlog.get_logger("kernel.process")


class Lifecycle:
    """Starts and ends processes.

    `on_end` are called with each process that ended, before its waiters are answered; `on_thread_end` with each thread.
    """

    def __init__(
        self,
        table: ProcessTable,
        programs: Programs,
        dispatcher: Dispatcher,
        gate: Gate,
        make_context: Callable[[Process], Any],
    ) -> None:
        self._table = table
        self._programs = programs
        self._dispatcher = dispatcher
        self._loop = dispatcher.loop
        self._make_context = make_context
        self._reapers: set[asyncio.Task[None]] = set()
        self.on_suspend: Callable[[Process], None] = _nothing
        self.on_resume: Callable[[Process], None] = _nothing
        self.on_end: list[Callable[[Process], None]] = []
        self.on_thread_end: list[Callable[[Thread], None]] = []
        self.draining = False
        self.exits: Counter[str] = Counter()
        gate.register({Spawn: self.spawn, Wait: self.wait, Kill: self.kill, Suspend: self.suspend, Resume: self.resume})

    # ---- system calls

    def spawn(self, parent: Process, call: Spawn, stream: Stream | None = None) -> int | Coroutine[Any, Any, int]:
        if self.draining:
            raise ShuttingDown("the daemon is shutting down and takes no new tasks", retry_after=5.0)
        if len(self._table.alive) >= MAX_PROCESSES:
            raise Busy(f"{MAX_PROCESSES} processes are alive, which is the limit; try later", retry_after=1.0)
        program = self._programs.find(call.program)
        if program is not None:
            return self._start(parent, program, call, stream)
        return self._load_and_start(parent, call, stream)

    async def _load_and_start(self, parent: Process, call: Spawn, stream: Stream | None) -> int:
        program = await asyncio.to_thread(self._programs.load, call.program)
        return self._start(parent, program, call, stream)

    def wait(self, process: Process, call: Wait) -> ExitStatus | Coroutine[Any, Any, ExitStatus]:
        target = self._table.find(call.pid)
        if target is process:
            raise InvalidCall(f"process {process.pid} waits for its own end")
        return target.status if target.status is not None else self._wait(target, call.timeout)

    def kill(self, process: Process, call: Kill) -> ExitStatus | Coroutine[Any, Any, ExitStatus]:
        target = self._table.find(call.pid)
        if target.status is not None:
            return target.status
        self.end(target, "killed", f"killed by process {process.pid} ({process.program})")
        return target.status if target.status is not None else self._wait(target, None)

    def suspend(self, process: Process, call: Suspend) -> None:
        target = self._table.get(call.pid)
        if target.is_client:
            raise InvalidCall(f"process {target.pid} is the connection of a client; suspend its tasks instead")
        if not target.suspended:
            target.suspended = True
            self.on_suspend(target)

    def resume(self, process: Process, call: Resume) -> None:
        self._resume(self._table.get(call.pid))

    # ---- for connections and the daemon

    def open_client(self, name: str) -> Process:
        """A process that stands for the connection of a client, called `name`."""
        process = Process(self._table.next_pid(), None, CLIENT, {}, owner=name, priority=0, is_client=True)
        self._table.add(process)
        return process

    def start_thread(self, process: Process, coro: Coroutine[Any, Any, Any], **options: Any) -> Thread:
        """Run `coro` as one more thread of `process`; it is cancelled when the process ends."""
        thread = Thread(process, coro, self._dispatcher, **options)
        maker = asyncio.current_task(self._loop)
        if isinstance(maker, Thread) and maker.process is process:
            maker.offspring += 1
            thread.path = f"{maker.path}-{maker.offspring}"
        process.threads.add(thread)
        thread.add_done_callback(self._thread_done)
        return thread

    def end(self, process: Process, reason: str, why: str) -> None:
        """Kill `process`: cancel its threads, kill its children, and bury it when they are gone. Returns at once."""
        if process.dying or process.ended:
            return
        process.dying = reason
        kind = DeadlineExceeded if reason == "deadline" else Killed
        self._cancel_all(process)
        self._bury_when_quiet(process, reason, error=to_wire(kind(why, pid=process.pid)))

    # ---- inside

    def _start(self, parent: Process, program: Program, call: Spawn, stream: Stream | None) -> int:
        args = call.args if parent.is_client else reveal(isolate(call.args))
        args = program.bind(args, call.positional, lenient=call.lenient)
        if parent.dying:
            raise Killed(f"process {parent.pid} ended while it spawned {call.program}")
        process = Process(
            self._table.next_pid(),
            None if call.detach else parent,
            program.name,
            args,
            owner=call.owner or parent.owner,
            priority=parent.priority if call.priority is None else call.priority,
            stream=stream if stream is not None or call.detach else parent.stream,
        )
        process.accepts = program.accepts
        coro = program.function(self._make_context(process), **args)
        self._table.add(process)
        if process.parent is not None:
            parent.children.add(process)
        if stream is not None:
            process.watchers.append(_final_event_to(stream))
        if call.deadline is not None:
            why = f"not done within its deadline of {call.deadline} s"
            process.deadline = self._loop.call_later(call.deadline, self.end, process, "deadline", why)
        main = Thread(process, coro, self._dispatcher)
        process.threads.add(main)
        main.add_done_callback(self._main_done)
        return process.pid

    async def _wait(self, target: Process, timeout: float | None) -> ExitStatus:
        thread, waited = cast(Thread, asyncio.current_task()), EndOf(target)

        def wake(_: Process) -> None:
            thread.wake()

        target.watchers.append(wake)
        alarm = Alarm(thread, None if timeout is None else self._loop.time() + timeout)
        try:
            while target.status is None:
                if alarm.rung:
                    raise TimedOut(f"process {target.pid} did not end within {timeout} s", pid=target.pid)
                thread.waits_for = waited
                deadlock.check(thread)
                await PARK
            return target.status
        finally:
            if wake in target.watchers:
                target.watchers.remove(wake)
            alarm.cancel()

    def _resume(self, process: Process) -> None:
        if process.suspended:
            process.suspended = False
            held, process.held = process.held, []
            for thread in held:
                self._dispatcher.push(thread)
            if not process.dying:
                self.on_resume(process)
                deadlock.resumed(process)

    def _cancel_all(self, process: Process) -> None:
        self._resume(process)
        for thread in tuple(process.threads):
            thread.cancel()
        for child in tuple(process.children):
            # Not at once: a long line of descendants would be as deep a recursion.
            self._loop.call_soon(self.end, child, "killed", f"its parent, process {process.pid}, ended")

    def _thread_done(self, thread: asyncio.Future[Any]) -> None:
        """A thread other than the first has ended; a failure of its own has been seen by whoever awaited it."""
        process = self._thread_gone(cast(Thread, thread))
        deadlock.thread_ended(process)
        if not thread.cancelled():
            thread.exception()

    def _main_done(self, thread: asyncio.Future[Any]) -> None:
        process = self._thread_gone(cast(Thread, thread))
        if process.dying:
            if not thread.cancelled():
                thread.exception()
            return
        reason, value, error = _outcome(thread, process)
        process.dying = reason
        self._cancel_all(process)
        self._bury_when_quiet(process, reason, value=value, error=error)

    def _thread_gone(self, thread: Thread) -> Process:
        thread.process.threads.discard(thread)
        for subsystem in self.on_thread_end:
            subsystem(thread)
        return thread.process

    def _bury_when_quiet(self, process: Process, reason: str, **outcome: Any) -> None:
        """Bury `process` now if it has neither threads nor children, else when they have ended."""
        if not process.threads and not process.children:
            self._bury(process, reason, **outcome)
            return
        # Not loop.create_task: called from an agent's thread, that would make the reaper a thread of the agent.
        reaper = asyncio.Task(self._reap(process, reason, **outcome), loop=self._loop, name=f"reaper of {process.pid}")
        self._reapers.add(reaper)
        reaper.add_done_callback(self._reapers.discard)

    async def _reap(self, process: Process, reason: str, **outcome: Any) -> None:
        if process.threads:
            await asyncio.wait(tuple(process.threads), timeout=GRACE)
        for thread in tuple(process.threads):
            if not thread.done():
                log.error(
                    "a thread ignored its cancellation and is abandoned", pid=process.pid, thread=thread.get_name()
                )
                thread.abandon()
            process.threads.discard(thread)
        for child in tuple(process.children):
            if not child.ended:
                gone = asyncio.Event()
                child.watchers.append(partial(_set, gone))
                await gone.wait()
        self._bury(process, reason, **outcome)

    def _bury(self, process: Process, reason: str, value: Any = None, error: ErrorInfo | None = None) -> None:
        process.ended = True
        process.status = ExitStatus(process.pid, process.program, reason, value, error, process.usage)
        if process.deadline is not None:
            process.deadline.cancel()
            process.deadline = None
        if process.parent is not None:
            process.parent.children.discard(process)
            process.parent = None
        process.stream, process.args = None, {}
        self._table.bury(process)
        if not process.is_client:
            self.exits[reason] += 1
            age = round(time.monotonic() - process.started, 3)
            log.debug("process ended", pid=process.pid, program=process.program, reason=reason, age=age)
        for subsystem in self.on_end:
            subsystem(process)
        watchers, process.watchers = process.watchers, []
        for watcher in watchers:
            watcher(process)


def _nothing(process: Process) -> None:
    pass


def _set(event: asyncio.Event, process: Process) -> None:
    event.set()


def _final_event_to(stream: Stream) -> Callable[[Process], None]:
    """A watcher that ends `stream` with the result of the process."""

    def finish(process: Process) -> None:
        status = process.status
        assert status is not None
        if status.error is not None:
            stream.push(Failed(process.pid, status.error))
        else:
            stream.push(Result(process.pid, status.value))
        stream.end()

    return finish


def _outcome(thread: asyncio.Future[Any], process: Process) -> tuple[str, Any, ErrorInfo | None]:
    """Reason, value and error of a main thread that ended by itself. The value is encodable and belongs to nobody."""
    if thread.cancelled():
        return "failed", None, to_wire(AgentFailed(f"{process.program} cancelled itself"))
    error = thread.exception()
    if error is None:
        value = thread.result()
        try:
            return "done", value if type(value) in PLAIN else msgspec.Raw(encode(value)), None
        except NotEncodable as unfit:
            return "failed", None, to_wire(NotEncodable(f"the result of {process.program}: {unfit.message}"))
    if isinstance(error, LlmosError):
        return "failed", None, to_wire(error)
    text = "".join(traceback.format_exception(error))
    return (
        "failed",
        None,
        to_wire(
            AgentFailed(f"{process.program}: {type(error).__name__}: {error}", traceback=text, program=process.program)
        ),
    )
