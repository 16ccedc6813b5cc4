"""Threads: the kernel's own task class, by asyncio's protocol for third-party tasks ("Extending asyncio").

Made by the kernel for every coroutine of a process, and for every task that agent code creates. `asyncio.timeout`,
`TaskGroup`, anyio and httpx work inside one. A thread never runs by itself: the dispatcher steps it. A kernel wait
(`PARK`) carries no value, so nothing is lost when it is cancelled: whoever wakes looks again at what it waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Coroutine, Generator
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kernel.dispatcher import Dispatcher
    from kernel.process import Process
    from kernel.waiting import Wait


class Held(Protocol):
    """What a thread can hold, such as a lock."""

    def drop(self, thread: Thread) -> None:
        """Take all of it from `thread`."""


# "Extending asyncio" in the library reference names these four, with the underscore.
_enter_task: Any = getattr(asyncio, "_enter_task")  # noqa: B009
_leave_task: Any = getattr(asyncio, "_leave_task")  # noqa: B009
_register_task: Any = getattr(asyncio, "_register_task")  # noqa: B009
_unregister_task: Any = getattr(asyncio, "_unregister_task")  # noqa: B009


class _Park:
    """Awaited by a thread that waits for the kernel; `Thread.wake` ends the wait."""

    __slots__ = ()

    def __await__(self) -> Generator[_Park, None, None]:
        yield self


PARK = _Park()
_Park.__await__ = (PARK,).__iter__  # type: ignore[method-assign, assignment] # does the same, without a frame

MAIN = "0"  # path of the first thread of a process

NEW, READY, RUNNING, BLOCKED, SUSPENDED, ZOMBIE = "new", "ready", "running", "blocked", "suspended", "zombie"


_init_future = asyncio.Future.__init__


def _cancellation(message: Any) -> asyncio.CancelledError:
    return asyncio.CancelledError() if message is None else asyncio.CancelledError(message)


class Thread(asyncio.Future[Any]):
    """A coroutine of a process, scheduled by the dispatcher. A future of its result, as every asyncio task is.

    `path` says who started it: "0" is the first thread of its process, "0-2" the second thread that one started; so
    the same program has the same paths in every run. `waits_for` is what it is blocked on (see `kernel.waiting`),
    `alarms` counts the timers that will wake it by themselves, `answer` is what a call of it was answered, `cpu` the
    processor time of its steps in seconds, `holds` what is taken from it when it ends.
    """

    __slots__ = (
        "_cancels",
        "_context",
        "_coro",
        "_fut_waiter",
        "_name",
        "_parked",
        "_send",
        "_throw",
        "alarms",
        "answer",
        "cpu",
        "dispatcher",
        "holds",
        "offspring",
        "path",
        "priority",
        "process",
        "state",
        "suspended",
        "waits_for",
    )

    def __init__(
        self,
        process: Process,
        coro: Coroutine[Any, Any, Any],
        dispatcher: Dispatcher,
        context: contextvars.Context | None = None,
        name: str | None = None,
    ) -> None:
        _init_future(self, loop=dispatcher.loop)  # as super() would, which takes a third longer
        self.process = process
        self.state = NEW
        self.waits_for: Wait | str = ""
        self.holds: dict[Held, None] | None = None
        self.alarms = 0
        self.answer: Any = None
        self.cpu = 0.0
        self.path = MAIN
        self.priority = process.priority
        self.suspended = False
        self.offspring = 0
        self._coro = coro
        self._send = coro.send
        self._context = context if context is not None else contextvars.copy_context()
        self.dispatcher = dispatcher
        self._name = None if name is None else str(name)
        self._cancels = 0
        self._fut_waiter: asyncio.Future[Any] | None = None
        self._parked = False
        self._throw: BaseException | None = None  # what the next step throws into the coroutine
        _register_task(self)
        dispatcher.push(self)

    # ---- the public face of an asyncio task

    def get_name(self) -> str:
        return self._name or f"{self.process.program}-{self.process.pid}"

    def set_name(self, value: object) -> None:
        self._name = str(value)

    def get_coro(self) -> Coroutine[Any, Any, Any]:
        return self._coro

    def get_context(self) -> contextvars.Context:
        return self._context

    def get_stack(self, *, limit: int | None = None) -> list[Any]:
        frame = getattr(self._coro, "cr_frame", None)
        return [] if frame is None else [frame]

    def cancelling(self) -> int:
        return self._cancels

    @property
    def _must_cancel(self) -> bool:
        """Whether a cancellation waits to be thrown. anyio asks tasks for it by this name of asyncio's own."""
        return isinstance(self._throw, asyncio.CancelledError)

    def uncancel(self) -> int:
        if self._cancels > 0:
            self._cancels -= 1
            if self._cancels == 0 and getattr(self._throw, "deferred", False):
                self._throw = None
        return self._cancels

    def defer(self, cancellation: asyncio.CancelledError) -> None:
        """Throw `cancellation`, which has come while something was done that must not be lost, at the next wait.

        Unless whoever asked for it takes it back before that: a timeout whose block is left without another wait.
        """
        self._throw = _cancellation(cancellation.args[0] if cancellation.args else None)
        self._throw.deferred = True  # type: ignore[attr-defined]

    def cancel(self, msg: Any = None) -> bool:
        """Throw CancelledError into the coroutine at its next step, as `asyncio.Task.cancel` does."""
        if self.done():
            return False
        # Down the line of threads that await one another, by a loop: it may be long, and may lead back into itself.
        line: dict[Thread, None] = {}
        last: Thread = self
        while last not in line:
            line[last] = None
            last._cancels += 1
            awaited = last._fut_waiter
            if not isinstance(awaited, Thread) or awaited.done():
                last._cancel_wait(msg)
                return True
            last = awaited
        last._leave_wait(msg)
        return True

    def _cancel_wait(self, msg: Any) -> None:
        """Cancel what this thread awaits, or let its next step throw."""
        awaited, self._fut_waiter = self._fut_waiter, None  # a circle that goes over other futures comes back here
        if awaited is not None and awaited.cancel(msg):
            self._fut_waiter = awaited
            if self._must_cancel:
                self._leave_wait(msg)
            return
        self._fut_waiter = awaited
        self._throw = _cancellation(msg)
        self.wake()

    def _leave_wait(self, msg: Any) -> None:
        """Throw CancelledError although what it awaits goes on: that waits for this thread in its turn."""
        assert self._fut_waiter is not None
        self._fut_waiter.remove_done_callback(self._outside_done)
        self._fut_waiter = None
        self._throw = _cancellation(msg)
        self.dispatcher.push(self)

    def set_result(self, result: object) -> None:
        raise RuntimeError("a thread sets its own result")

    def set_exception(self, exception: object) -> None:
        raise RuntimeError("a thread sets its own exception")

    def __repr__(self) -> str:
        return f"<Thread {self.get_name()} of pid {self.process.pid} {self.state} {self.waits_for}>"

    # ---- what the kernel calls

    def wake(self) -> None:
        """End the kernel wait of this thread; nothing if it is not in one."""
        if self._parked:
            self._parked = False
            self.dispatcher.push(self)

    def interrupt(self, error: Exception) -> None:
        """End the kernel wait of this thread with `error`; nothing if it is not in one. A cancellation goes first."""
        if self._parked:
            self._parked = False
            self._throw = error
            self.dispatcher.push(self)

    @property
    def about_to_be_cancelled(self) -> bool:
        """Whether its next step throws a cancellation that it has not seen yet."""
        return self._must_cancel or (self._fut_waiter is not None and self._fut_waiter.cancelled())

    def hold(self, thing: Held) -> None:
        """Remember that `thing` is to be taken from this thread when it ends."""
        if self.holds is None:
            self.holds = {}
        self.holds[thing] = None

    def forget(self, thing: Held) -> None:
        """Undo `hold`."""
        if self.holds is not None:
            self.holds.pop(thing, None)

    def abandon(self) -> None:
        """Give up a thread that ignores its cancellation: it is never stepped again."""
        if not self.done():
            self._parked = False
            self._finish()
            super().cancel()
            loop = self._loop
            giver = asyncio.current_task(loop)
            if giver is not None:
                _leave_task(loop, giver)
            _enter_task(loop, self)  # so that what its `finally` blocks would start is not taken for somebody else's
            # Here and not by the garbage collector, which would print what they raise.
            with contextlib.suppress(BaseException):
                self._coro.close()
            _leave_task(loop, self)
            if giver is not None:
                _enter_task(loop, giver)

    def step(self, start: float) -> float:
        """Run the coroutine to its next wait, from time `start`; the time after it. Called by the dispatcher only."""
        if self.state is ZOMBIE:
            return start
        throw = self._throw
        if throw is not None:
            self._throw = None
        self._fut_waiter = None
        self.state = RUNNING
        loop = self.dispatcher.loop
        _enter_task(loop, self)
        try:
            if throw is None:
                wanted = self._context.run(self._send, None)
            else:
                wanted = self._context.run(self._coro.throw, throw)
        except StopIteration as stop:
            self._finish()
            if self._throw is not None:  # cancelled by itself, in its last step
                super().cancel(*self._throw.args[:1])
            else:
                super().set_result(stop.value)
        except asyncio.CancelledError as error:
            throw = None  # else it and this frame, which is in its traceback, keep each other
            self._finish()
            super().cancel(*error.args[:1])
        except BaseException as error:
            # Also SystemExit and KeyboardInterrupt: an agent that raises them ends itself, not the daemon.
            throw = None
            error.__traceback__ = None if error.__traceback__ is None else error.__traceback__.tb_next
            self._finish()
            super().set_exception(error)
        else:
            if wanted is PARK and self._throw is None:
                self._parked = True
                self.state = BLOCKED
            else:
                self._await_outside(wanted)
        _leave_task(loop, self)
        end = perf_counter()
        self.cpu += end - start
        return end

    def _await_outside(self, wanted: Any) -> None:
        """Block on what asyncio code yielded: a future, or None to give up the loop for a turn."""
        if wanted is None or wanted is PARK:  # in a park that was cancelled meanwhile, there is nothing to wait for
            self.dispatcher.push(self)
            return
        if getattr(wanted, "_asyncio_future_blocking", None) is None or wanted is self:
            self._throw = RuntimeError(f"a thread cannot await {'itself' if wanted is self else repr(wanted)}")
            self.dispatcher.push(self)
            return
        wanted._asyncio_future_blocking = False
        self.state = BLOCKED
        self.waits_for = "outside"
        wanted.add_done_callback(self._outside_done, context=self._context)
        self._fut_waiter = wanted
        if self._throw is not None and wanted.cancel(*self._throw.args[:1]):
            self._throw = None

    def _outside_done(self, future: asyncio.Future[Any]) -> None:
        # An exception of the future is raised again by its own __await__ when the coroutine goes on. _fut_waiter stays
        # until then, as in asyncio: its presence tells a cancel that comes first to be thrown.
        if self.state is not ZOMBIE:  # given up while it waited
            self.dispatcher.push(self)

    def _finish(self) -> None:
        self.state = ZOMBIE
        self.waits_for = ""
        self._fut_waiter = None
        _unregister_task(self)
