"""Fibers: coroutines stepped by the dispatcher, by asyncio's protocol for third-party tasks ("Extending asyncio").

`Thread` (`kernel.core.process`) adds the process that owns one. `asyncio.timeout`, `TaskGroup`, anyio and httpx work
inside a fiber. It never runs by itself: the dispatcher steps it. A kernel wait (`PARK`) carries no value, so a
cancelled wait loses nothing: a fiber that wakes looks again at what it waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Coroutine, Generator
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kernel.core.timers import TimerQueue


class Scheduler(Protocol):
    """What a fiber needs of the dispatcher: `push` puts it at the end of the ready queue."""

    loop: asyncio.AbstractEventLoop
    timers: TimerQueue

    def push(self, fiber: Any, /) -> None: ...


# "Extending asyncio" in the library reference names these four, with the underscore.
_enter_task: Any = getattr(asyncio, "_enter_task")  # noqa: B009
_leave_task: Any = getattr(asyncio, "_leave_task")  # noqa: B009
register_task: Any = getattr(asyncio, "_register_task")  # noqa: B009
_unregister_task: Any = getattr(asyncio, "_unregister_task")  # noqa: B009


class _Park:
    """Awaited by a fiber that waits for the kernel; `Fiber.wake` ends the wait."""

    __slots__ = ()

    def __await__(self) -> Generator[_Park, None, None]:
        yield self


PARK = _Park()
_Park.__await__ = (PARK,).__iter__  # type: ignore[method-assign, assignment] # does the same, without a frame

NEW, READY, RUNNING, BLOCKED, SUSPENDED, ZOMBIE = "new", "ready", "running", "blocked", "suspended", "zombie"


init_future = asyncio.Future.__init__  # as super() would call it, which takes a third longer


def _cancellation(message: Any) -> asyncio.CancelledError:
    return asyncio.CancelledError() if message is None else asyncio.CancelledError(message)


class Fiber(asyncio.Future[Any]):
    """A coroutine that the dispatcher steps. A future of its result, as every asyncio task is.

    `waits_for` is what it is blocked on, `timers` counts the timers that will wake it by themselves, `cpu` is the
    processor time of its steps in seconds. `Thread` sets all of this: a spawn has one constructor, not two.
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
        "timers",
        "waits_for",
    )

    dispatcher: Scheduler
    state: str
    waits_for: object
    timers: int
    cpu: float
    _coro: Coroutine[Any, Any, Any]
    _send: Any  # of the coroutine
    _context: contextvars.Context
    _name: str | None
    _cancels: int
    _fut_waiter: asyncio.Future[Any] | None
    _parked: bool
    _throw: BaseException | None  # what the next step throws into the coroutine

    # ---- the public face of an asyncio task

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
        # Down the line of fibers that await one another, by a loop: it may be long, and may lead back into itself.
        line: dict[Fiber, None] = {}
        last: Fiber = self
        while last not in line:
            line[last] = None
            last._cancels += 1
            awaited = last._fut_waiter
            if not isinstance(awaited, Fiber) or awaited.done():
                last._cancel_wait(msg)
                return True
            last = awaited
        last._leave_wait(msg)
        return True

    def _cancel_wait(self, msg: Any) -> None:
        """Cancel what this fiber awaits, or let its next step throw."""
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
        """Throw CancelledError although what it awaits goes on: that waits for this fiber in its turn."""
        assert self._fut_waiter is not None
        self._fut_waiter.remove_done_callback(self._outside_done)
        self._fut_waiter = None
        self._throw = _cancellation(msg)
        self.dispatcher.push(self)

    def set_result(self, result: object) -> None:
        raise RuntimeError("a thread sets its own result")

    def set_exception(self, exception: object) -> None:
        raise RuntimeError("a thread sets its own exception")

    # ---- what the kernel calls

    def wake(self) -> None:
        """End the kernel wait of this fiber; nothing if it is not in one."""
        if self._parked:
            self._parked = False
            self.dispatcher.push(self)

    def interrupt(self, error: Exception) -> None:
        """End the kernel wait of this fiber with `error`; nothing if it is not in one. A cancellation goes first."""
        if self._parked:
            self._parked = False
            self._throw = error
            self.dispatcher.push(self)

    @property
    def about_to_be_cancelled(self) -> bool:
        """Whether its next step throws a cancellation that it has not seen yet."""
        return self._must_cancel or (self._fut_waiter is not None and self._fut_waiter.cancelled())

    def abandon(self) -> None:
        """Give up a fiber that ignores its cancellation: it is never stepped again."""
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
