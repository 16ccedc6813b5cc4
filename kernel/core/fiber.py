"""Fibers: coroutines that the dispatcher runs in steps. A step runs the coroutine to its next wait.

A fiber follows asyncio's protocol for third-party tasks ("Extending asyncio"), so `asyncio.timeout`, `TaskGroup`, anyio
and httpx work inside it. `Thread` (`kernel.core.process`) adds the process that owns the fiber. A kernel wait (`PARK`)
returns no value: the woken fiber checks its condition again, so a cancelled wait loses nothing. A fiber never runs
outside a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from asyncio import base_tasks
from collections.abc import Coroutine, Generator
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from ipc.errors import brief
from ipc.foreign import MAX_NAME, arguments_of, bounded, class_name, drop_outer_frame, is_a, shown
from kernel.core.plain_wait import NO_WAIT, OUTSIDE

if TYPE_CHECKING:
    from kernel.core.timers import TimerQueue


class Scheduler(Protocol):
    """The dispatcher, as a fiber sees it.

    `push` puts a fiber at the end of the ready queue. `give_way` does so after the callbacks that are scheduled now.
    `cancelled` is called when a suspended fiber is cancelled.
    """

    loop: asyncio.AbstractEventLoop
    timers: TimerQueue

    def push(self, fiber: Any, /) -> None: ...

    def give_way(self, fiber: Any, /) -> None: ...

    def cancelled(self, fiber: Any, /) -> None: ...


# "Extending asyncio" in the library reference documents these four functions, underscores included.
_enter_task: Any = getattr(asyncio, "_enter_task")  # noqa: B009
_leave_task: Any = getattr(asyncio, "_leave_task")  # noqa: B009
register_task: Any = getattr(asyncio, "_register_task")  # noqa: B009
_unregister_task: Any = getattr(asyncio, "_unregister_task")  # noqa: B009
_task_print_stack: Any = getattr(base_tasks, "_task_print_stack")  # noqa: B009


class _Park:
    """A fiber awaits `PARK` to wait until the kernel calls `Fiber.wake`."""

    __slots__ = ()

    def __await__(self) -> Generator[_Park, None, None]:
        yield self


PARK = _Park()
_Park.__await__ = (PARK,).__iter__  # type: ignore[method-assign, assignment] # the same, but faster: it needs no frame

NEW, READY, RUNNING, BLOCKED, SUSPENDED, ZOMBIE = "new", "ready", "running", "blocked", "suspended", "zombie"


init_future = asyncio.Future.__init__  # a call through super() takes a third longer


def _cancellation(message: Any) -> asyncio.CancelledError:
    return asyncio.CancelledError() if message is None else asyncio.CancelledError(message)


class Fiber(asyncio.Future[Any]):
    """A coroutine that the dispatcher runs in steps. Like every asyncio task it is a future of its result.

    `waits_for` is the wait that blocks the fiber, `timers` counts the timers that are set to wake it, `cpu` is the time
    of its steps in seconds, and `stepped_at` is when its last step ended, by `perf_counter`. `Thread` sets all
    attributes, so that a spawn runs one constructor and not two.
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
        "cpu",
        "dispatcher",
        "state",
        "stepped_at",
        "timers",
        "waits_for",
    )

    dispatcher: Scheduler
    state: str
    waits_for: object
    timers: int
    cpu: float
    stepped_at: float
    _coro: Coroutine[Any, Any, Any]
    _send: Any  # the method `send` of the coroutine
    _context: contextvars.Context
    _name: str | None
    _cancels: int
    _fut_waiter: asyncio.Future[Any] | None
    _parked: bool
    _throw: BaseException | None  # the next step throws it into the coroutine

    # ---- the public interface of an asyncio task

    def set_name(self, value: object) -> None:
        self._name = bounded(str(value), MAX_NAME)

    def get_coro(self) -> Coroutine[Any, Any, Any]:
        return self._coro

    def get_context(self) -> contextvars.Context:
        return self._context

    def get_stack(self, *, limit: int | None = None) -> list[Any]:
        frame = getattr(self._coro, "cr_frame", None)
        return [] if frame is None else [frame]

    def print_stack(self, *, limit: int | None = None, file: TextIO | None = None) -> None:
        _task_print_stack(self, limit, file)

    def cancelling(self) -> int:
        return self._cancels

    @property
    def _must_cancel(self) -> bool:
        """Whether the next step throws a cancellation. anyio reads this attribute of asyncio's tasks by name."""
        return isinstance(self._throw, asyncio.CancelledError)

    def uncancel(self) -> int:
        if self._cancels > 0:
            self._cancels -= 1
            if self._cancels == 0 and getattr(self._throw, "deferred", False):
                self._throw = None
        return self._cancels

    def defer(self, cancellation: asyncio.CancelledError) -> None:
        """Throw `cancellation` at the next wait: it arrived during a call whose answer must not be lost.

        `uncancel` revokes the cancellation. `asyncio.timeout` calls it if its block ends without another wait.
        """
        self._throw = _cancellation(cancellation.args[0] if cancellation.args else None)
        self._throw.deferred = True  # type: ignore[attr-defined]

    def cancel(self, msg: Any = None) -> bool:
        """Throw CancelledError into the coroutine at its next step, as `asyncio.Task.cancel` does."""
        if self.done():
            return False
        # A loop instead of recursion: the chain of fibers that await one another may be long, or lead back to itself.
        chain: dict[Fiber, None] = {}
        last: Fiber = self
        while last not in chain:
            chain[last] = None
            last._cancels += 1
            awaited = last._fut_waiter
            if not is_a(awaited, Fiber) or awaited.done():
                last._cancel_wait(msg)
                return True
            last = awaited
        last._leave_wait(msg)
        return True

    def _cancel_wait(self, msg: Any) -> None:
        """Cancel the future that this fiber awaits. If that has ended, throw CancelledError at the next step."""
        awaited, self._fut_waiter = self._fut_waiter, None  # stops the recursion if futures lead back to this fiber
        try:
            cancelled = awaited is not None and awaited.cancel(msg)
        except BaseException:  # `awaited` may be any object of the agent
            self._throw = _cancellation(msg)
            self.dispatcher.push(self)
            return
        if cancelled:
            self._fut_waiter = awaited
            if self._must_cancel:
                self._leave_wait(msg)
            return
        self._fut_waiter = awaited
        self._throw = _cancellation(msg)
        if self.state is SUSPENDED:
            self.dispatcher.cancelled(self)
        else:
            self.wake()

    def _leave_wait(self, msg: Any) -> None:
        """Throw CancelledError without waiting for the end of the awaited future: that future waits for this fiber."""
        assert self._fut_waiter is not None
        with contextlib.suppress(BaseException):  # it may be any object of the agent
            self._fut_waiter.remove_done_callback(self._outside_done)
        self._fut_waiter = None
        self._throw = _cancellation(msg)
        self.dispatcher.push(self)

    def set_result(self, result: object) -> None:
        raise RuntimeError("a thread does not support set_result: its result is the return value of its coroutine")

    def set_exception(self, exception: object) -> None:
        raise RuntimeError("a thread does not support set_exception: its exception is raised by its coroutine")

    # ---- for the kernel

    @property
    def seconds_waiting(self) -> float:
        """Seconds since its last step, or since it was made."""
        return perf_counter() - self.stepped_at

    @property
    def awaited_future(self) -> asyncio.Future[Any] | None:
        """The future of asyncio that blocks the fiber; None in a kernel wait."""
        return self._fut_waiter

    def wake(self) -> None:
        """End the kernel wait of this fiber. Does nothing if the fiber is in no kernel wait."""
        if self._parked:
            self._parked = False
            self.dispatcher.push(self)

    def interrupt(self, error: Exception) -> None:
        """End the kernel wait of this fiber with `error`. Does nothing without such a wait, or after a cancellation."""
        if self._parked:
            self._parked = False
            self._throw = error
            self.dispatcher.push(self)

    @property
    def about_to_be_cancelled(self) -> bool:
        """Whether the next step throws a cancellation."""
        awaited = self._fut_waiter  # any object of the agent, if it is no future
        return self._must_cancel or (is_a(awaited, asyncio.Future) and asyncio.Future.cancelled(awaited))

    def abandon(self) -> None:
        """Close a fiber that ignores its cancellation. It is never stepped again."""
        if not self.done():
            self._parked = False
            self._finish()
            super().cancel()
            loop = self._loop
            current = asyncio.current_task(loop)
            if current is not None:
                _leave_task(loop, current)
            _enter_task(loop, self)  # its `finally` blocks may start tasks, which must not belong to another thread
            # If the garbage collector closed the coroutine, it would print the errors of the `finally` blocks.
            with contextlib.suppress(BaseException):
                self._coro.close()
            _leave_task(loop, self)
            if current is not None:
                _enter_task(loop, current)

    def fail(self, error: BaseException) -> None:
        """End a fiber at whose step the kernel itself raised `error`."""
        current: object = asyncio.current_task(self._loop)
        if current is self:
            _leave_task(self._loop, self)
        if not self.done():
            self._parked = False
            self._finish()
            super().set_exception(error)

    def step(self, start: float) -> float:
        """Run the coroutine to its next wait. Takes the time before the step, returns the time after it.

        Only the dispatcher calls this.
        """
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
            if self._throw is not None:  # the coroutine cancelled itself in its last step
                super().cancel(*self._throw.args[:1])
                self._throw = None
            else:
                super().set_result(stop.value)
        except asyncio.CancelledError as error:
            throw = None  # its traceback refers to this frame, which must not refer back to it
            self._finish()
            super().cancel(*arguments_of(error)[:1])
        except BaseException as error:
            # Also SystemExit and KeyboardInterrupt: an agent that raises them ends its own process, not the daemon.
            throw = None
            drop_outer_frame(error)
            self._finish()
            super().set_exception(error)
        else:
            if wanted is PARK and self._throw is None:
                self._parked = True
                self.state = BLOCKED
            else:
                self._await_outside(wanted)
        _leave_task(loop, self)
        self.stepped_at = end = perf_counter()
        self.cpu += end - start
        return end

    def _await_outside(self, wanted: Any) -> None:
        """Block on the value that asyncio code yielded: a future, or None to give up the loop for one turn."""
        if wanted is None:
            self.dispatcher.give_way(self)
            return
        if wanted is PARK:  # PARK gets here only if a cancellation must be thrown: do not wait
            self.dispatcher.push(self)
            return
        try:
            if getattr(wanted, "_asyncio_future_blocking", None) is None or wanted is self:
                itself = f"itself: Task cannot await on itself: {self!r}"
                self._refuse_wait(itself if wanted is self else shown(wanted))
                return
            loop_of = getattr(wanted, "get_loop", None)  # an object of the agent may lack it
            if loop_of is not None and loop_of() is not self._loop:
                self._refuse_wait(f"it: Task {self!r} got Future {shown(wanted)} attached to a different loop")
                return
            wanted._asyncio_future_blocking = False
            self.state = BLOCKED
            self.waits_for = OUTSIDE
            wanted.add_done_callback(self._outside_done, context=self._context)
            self._fut_waiter = wanted
            if self._throw is not None and wanted.cancel(*self._throw.args[:1]):
                self._throw = None
        except BaseException as error:  # `wanted` may be any object of the agent
            self._fut_waiter = None
            self._refuse_wait(f"a {class_name(wanted)}: {brief(error)}")

    def _refuse_wait(self, what: str) -> None:
        if self._throw is None:
            self._throw = RuntimeError(f"a thread cannot await {what}")
        self.dispatcher.push(self)

    def _outside_done(self, future: asyncio.Future[Any]) -> None:
        # The future's own __await__ raises its exception when the coroutine goes on. As in asyncio, _fut_waiter stays
        # set until the next step. A finished future refuses a cancellation, which is therefore thrown in that step.
        if self.state is not ZOMBIE:  # the fiber may have been abandoned while it waited
            self.dispatcher.push(self)

    def _finish(self) -> None:
        self.state = ZOMBIE
        self.waits_for = NO_WAIT
        self._fut_waiter = None
        _unregister_task(self)
