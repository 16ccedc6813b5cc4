"""Calls from a worker thread of Linux: `ctx.from_thread` runs a coroutine in a thread of the process on the loop.

The context calls it. The worker thread waits until the coroutine has ended, and never longer than the process lives. It
never runs code of the agent in the worker thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from typing import Any

from ipc.errors import InvalidCall, Killed
from kernel.core.process import Process
from kernel.programs.origin import ORIGIN, without_origin


def run_from_thread(process: Process, make: Callable[[], Any]) -> Any:
    """Await what `make` returns, in a new thread of `process`, and return the result. Raises the error.

    Raises `Killed` if the process ends before that, and `InvalidCall` on the loop itself.
    """
    thread = next(iter(tuple(process.threads)), None)
    if thread is None:
        raise _ended(process)
    loop = thread.get_loop()
    if asyncio._get_running_loop() is loop:
        raise InvalidCall("`ctx.from_thread` is for worker threads, as of `asyncio.to_thread`; here, await the call")
    call = CallFromThread(process, make, loop)
    try:
        loop.call_soon_threadsafe(call.start)
    except RuntimeError:  # the loop is closed
        raise _ended(process) from None
    return call.answer.result()


class CallFromThread:
    """One call. All methods run on the loop."""

    def __init__(self, process: Process, make: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._process = process
        self._make = make
        self._loop = loop

    def start(self) -> None:
        if self._process.status is not None:
            self.answer.set_exception(_ended(self._process))
            return
        context = without_origin()
        context.run(ORIGIN.set, self._process)  # the task factory makes it a thread of this process
        self._loop.create_task(self._run(), context=context).add_done_callback(self._done)

    async def _run(self) -> Any:
        made = self._make()
        return await made if isinstance(made, Coroutine) or hasattr(made, "__await__") else made

    def _done(self, thread: asyncio.Future[Any]) -> None:
        if thread.cancelled():
            error = _ended(self._process) if self._process.dying else asyncio.CancelledError()
            self.answer.set_exception(error)
        elif (failure := thread.exception()) is not None:
            self.answer.set_exception(failure)
        else:
            self.answer.set_result(thread.result())


def _ended(process: Process) -> Killed:
    return Killed(f"process {process.pid} is ending or has ended, and may make no more calls", pid=process.pid)
