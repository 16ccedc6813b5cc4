"""Daemon threads for functions that block: a bounded pool, and the pool of the kernel's own work.

The kernel and the daemon call `in_thread` where a library would use `asyncio.to_thread`. The default executor of the
loop belongs to the agents, which may block all its threads (`kernel/event_loop/agent_threads.py`). A pool never waits
for its threads: unlike those of `ThreadPoolExecutor`, a thread that hangs does not delay the exit of the interpreter.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

MAX_IDLE = 8  # idle threads of a pool
KERNEL_THREADS = 32  # that do the kernel's own work at the same time

T = TypeVar("T")


class WorkItem:
    """A function that waits for a thread, or runs in one, for `owner`: a process, if the pool distinguishes them."""

    __slots__ = ("future", "owner", "work")

    def __init__(self, future: Future[Any], work: Callable[[], Any]) -> None:
        self.future = future
        self.work = work
        self.owner: Any = None


class DaemonThreads(Executor):
    """A pool of at most `most` daemon threads. Further functions wait in line, in the order of arrival."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._line: deque[WorkItem] = deque()
        self._changed = threading.Condition()
        self._idle = 0
        self._threads = 0

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn` in a thread. Raises `RuntimeError` if the pool has no thread and can start none."""
        future: Future[T] = Future()
        item = WorkItem(future, partial(fn, *args, **kwargs))
        with self._changed:
            self._accept(item)
        return future

    # ---- for subclasses, with the lock held

    def _accept(self, item: WorkItem) -> None:
        """Put a new function in line."""
        self._line.append(item)
        try:
            self._serve_one_more()
        except RuntimeError:
            self._line.remove(item)
            raise

    def _finished(self, item: WorkItem) -> None:
        """A function has ended, or was cancelled while it waited in line."""

    def _serve_one_more(self) -> None:
        """Wake or start a thread for a function that is in line. Raises `RuntimeError` if there can be no thread."""
        if len(self._line) <= self._idle:
            self._changed.notify()
        elif self._threads < self._most:
            try:
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
                self._threads += 1
            except RuntimeError:  # the system has no more threads; a thread of this pool takes it later
                if not self._threads:
                    raise

    # ---- in the threads

    def _serve(self) -> None:
        while (item := self._next()) is not None:
            if item.future.set_running_or_notify_cancel():
                try:
                    result = item.work()
                except BaseException as error:
                    item.future.set_exception(error)
                else:
                    item.future.set_result(result)
                    del result
            with self._changed:
                self._finished(item)
            del item

    def _next(self) -> WorkItem | None:
        """The next function of this thread; None if the thread is not needed."""
        with self._changed:
            if self._threads > self._most:
                self._threads -= 1
                return None
            while not self._line:
                if self._idle >= MAX_IDLE:
                    self._threads -= 1
                    return None
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            return self._line.popleft()


_kernel = DaemonThreads("llmosd kernel", KERNEL_THREADS)


def begin_in_thread(function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """Begin to call `function` in a thread of the kernel."""
    return asyncio.get_running_loop().run_in_executor(_kernel, copy_context().run, partial(function, *args))


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call `function` in a thread of the kernel. If the caller is cancelled, the function goes on."""
    return await begin_in_thread(function, *args)
