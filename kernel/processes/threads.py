"""Further threads of a process: started by agents and for the requests of clients, and killed one at a time.

The gate calls it for `StartThread` and `Sleep`. The loop calls `make_task`, its task factory, for each task that agent
code makes. A thread never outlives its process. The lifecycle starts the first thread of a process.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar, cast

import structlog

from ipc.errors import InvalidCall, LimitExceeded
from ipc.foreign import shown
from ipc.syscalls import Sleep, StartThread
from kernel.core.fiber import PARK
from kernel.core.plain_wait import PlainWait
from kernel.core.process import MAIN, Process, Thread
from kernel.core.timers import Timer
from kernel.dispatch.dispatcher import Dispatcher
from kernel.gate import Gate
from kernel.lib.validation import check_seconds, check_text
from kernel.processes.exit import GRACE, ProcessExit
from kernel.processes.outcome import failure, outcome
from kernel.programs.origin import ORIGIN

T = TypeVar("T", bound=Thread)

MOST_THREADS = 100_000  # of one process
MAX_NAME = 1000  # characters of the name of a thread

SLEEP = PlainWait("time", "time", "sleeping", timer="the time to sleep is over")

log = structlog.get_logger("kernel.processes")


class StartedThread(Thread):
    """A thread that an agent started by `StartThread`.

    `awaited` counts the callbacks that wait for its end, even those added after the end. If it is 0, nothing awaits the
    thread, and the process fails if the thread fails.
    """

    __slots__ = ("awaited",)

    def __init__(self, *args: Any, **options: Any) -> None:
        self.awaited = 0
        super().__init__(*args, **options)

    # Each `await` of a future calls these two methods; asyncio's own tasks and `gather` do, too.

    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: contextvars.Context | None = None) -> None:
        self.awaited += 1
        # Futures in C take a context of None for one without variables, not for the current one.
        super().add_done_callback(fn, context=contextvars.copy_context() if context is None else context)

    def remove_done_callback(self, fn: Callable[[Any], object], /) -> int:
        removed = super().remove_done_callback(fn)
        self.awaited -= removed
        return removed


class ThreadSubsystem:
    """Starts threads and kills them."""

    def __init__(self, dispatcher: Dispatcher, process_exit: ProcessExit, gate: Gate) -> None:
        self._dispatcher = dispatcher
        self._loop = dispatcher.loop
        self._process_exit = process_exit
        gate.register({StartThread: self.start_worker, Sleep: self.sleep})

    def start_worker(self, process: Process, call: StartThread) -> Thread:
        if not issubclass(type(call.coro), Coroutine | Generator):  # never by the object's `__class__`
            raise InvalidCall(f"a thread runs a coroutine, such as work(); {shown(call.coro)} is not one")
        if call.name is not None:
            check_text(call.name, "the name of a thread", MAX_NAME)
        _check_count(process, call.coro)
        return self._adopt(StartedThread(process, call.coro, self._dispatcher, name=call.name), self._worker_done)

    def start_thread(self, process: Process, coro: Coroutine[Any, Any, Any], **options: Any) -> Thread:
        """Run `coro` as a further thread of `process`. The thread is cancelled when the process ends."""
        return self._adopt(Thread(process, coro, self._dispatcher, **options), self._thread_done)

    def make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any],
        *,
        context: contextvars.Context | None = None,
        name: str | None = None,
        **_: Any,  # later versions of asyncio pass more, such as eager_start
    ) -> asyncio.Future[Any]:
        """The task factory of the loop. A task that agent code makes becomes a thread of the agent's process.

        So does a task that a callback of the process makes, such as the handler of a server. No other thread awaits it.
        """
        if not asyncio.iscoroutine(coro):
            raise TypeError(f"a coroutine was expected, got {shown(coro)}")
        maker = asyncio.current_task(loop)
        if isinstance(maker, Thread):
            if maker.done():
                coro.close()
                raise RuntimeError("an abandoned thread cannot start another thread")
            _check_count(maker.process, coro)
            if context is not None and context.get(ORIGIN) is not maker.process:
                context.run(ORIGIN.set, maker.process)  # callbacks of the new thread find their process by it
            return self.start_thread(maker.process, coro, context=context, name=name)
        origin = ORIGIN.get() if context is None else context.get(ORIGIN)
        if not isinstance(origin, Process):
            return asyncio.Task(coro, loop=loop, context=context, name=name)
        if origin.status is not None:
            coro.close()
            raise RuntimeError(f"process {origin.pid} has ended and cannot start another thread")
        _check_count(origin, coro)
        return self._adopt(Thread(origin, coro, self._dispatcher, context, name), self._callback_thread_done)

    def callback_exited(self, process: Process, error: BaseException) -> None:
        """A callback of `process` has raised `SystemExit` or `KeyboardInterrupt`, which ends the process."""
        self._process_exit.finish(process, "failed", error=failure(error, process.program))

    async def sleep(self, process: Process, call: Sleep) -> None:
        seconds = check_seconds(call.seconds, "the time to sleep")
        thread = cast("Thread", asyncio.current_task())
        timer = Timer(thread, seconds)
        try:
            while not timer.expired:
                thread.waits_for = SLEEP
                await PARK
        finally:
            timer.cancel()

    async def kill(self, target: Thread) -> None:
        """End one thread; returns when it has ended or was abandoned. Raises `InvalidCall`."""
        thread = cast("Thread", asyncio.current_task())
        if target is thread:
            raise InvalidCall("a thread cannot kill itself; let its coroutine return")
        if target.path == MAIN:
            raise InvalidCall(f"process {target.process.pid} ends with its first thread; kill the process")
        self._dispatcher.clean_up(target)
        target.cancel()
        grace = self._loop.call_later(GRACE, self._abandon, target)  # also if the caller of `Kill` goes away

        def ended(_: asyncio.Future[Any]) -> None:
            grace.cancel()
            self._dispatcher.end_clean_up(target)
            thread.wake()

        Thread.add_done_callback(target, ended)
        timer = Timer(thread, GRACE)
        what = f"thread {target.path} of process {target.process.pid}"
        wait = PlainWait(
            f"end of thread {target.path}",
            "thread",
            f"waiting for the end of {what}",
            f"{what} ends",
            "that thread is abandoned",
        )
        try:
            while not target.done():
                thread.waits_for = wait
                await PARK
        finally:
            timer.cancel()

    # ---- inside

    def _abandon(self, target: Thread) -> None:
        if not target.done():
            log.error("a thread ignored its cancellation and is abandoned", thread=target.get_name())
            target.abandon()

    def _adopt(self, thread: T, done: Callable[[asyncio.Future[Any]], None]) -> T:
        """Add a new thread to its process, and call `done` at its end.

        If the running thread belongs to the same process, the new thread gets the priority of the running thread, and a
        path below the path of the running thread. Otherwise a callback of the loop made it.
        """
        process = thread.process
        maker = asyncio.current_task(self._loop)
        if isinstance(maker, Thread) and maker.process is process:
            maker.started_threads += 1
            thread.path = f"{maker.path}-{maker.started_threads}"
            self._dispatcher.reprioritise(thread, maker.priority)
        elif not process.is_client:
            process.threads_of_callbacks += 1
            thread.path = f"{MAIN}-c{process.threads_of_callbacks}"
        process.add_thread(thread)
        Thread.add_done_callback(thread, done, context=thread.get_context())
        return thread

    def _thread_done(self, thread: asyncio.Future[Any]) -> None:
        """A thread made by `start_thread` has ended. The process goes on.

        If the thread failed, code that awaits it gets the exception. If nothing awaits it, the exception is dropped.
        """
        self._process_exit.thread_gone(thread)
        if not thread.cancelled():
            thread.exception()

    def _callback_thread_done(self, thread: asyncio.Future[Any]) -> None:
        """A thread that a callback started has ended. The loop reports its failure if nothing retrieves it."""
        process = self._process_exit.thread_gone(thread)
        if thread.cancelled():
            return
        if process.dying:
            return
        error = getattr(thread, "_exception")  # noqa: B009 # `exception()` would count as retrieving it
        if isinstance(error, SystemExit | KeyboardInterrupt):
            thread.exception()
            self.callback_exited(process, error)

    def _worker_done(self, thread: asyncio.Future[Any]) -> None:
        """A thread made by `start_worker` has ended. If nothing awaits it, its failure ends the process."""
        process = self._process_exit.thread_gone(thread)
        if not thread.cancelled() and thread.exception() is not None and not cast("StartedThread", thread).awaited:
            self._process_exit.finish(process, *outcome(thread, process))


def _check_count(process: Process, coro: Coroutine[Any, Any, Any]) -> None:
    """Raises `LimitExceeded` if `process` may have no further thread, and closes the coroutine that it would run."""
    if len(process.threads) >= MOST_THREADS:
        coro.close()
        raise LimitExceeded(
            f"process {process.pid} has {MOST_THREADS} threads, which is the limit; wait until some have ended",
            limit="process threads",
            maximum=MOST_THREADS,
            wanted=len(process.threads) + 1,
        )
