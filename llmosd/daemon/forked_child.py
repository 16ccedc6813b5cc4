"""Forked children of agents and tools, such as those of `multiprocessing`: none may go on as a second daemon.

The daemon calls `guard` once its kernel is made, and `end_workers` before it exits. Python calls `_ForkGuard` around
each fork. A child may compute, exec, or run the main function of `multiprocessing`. It ends itself where it would go on
as the daemon: in a step, the gate, the journal, or a callback of the loop. It ends when the daemon ends. In the daemon
itself a fork only holds back signals for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import fcntl
import gc
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kernel.core import fiber
from kernel.core.fiber import Fiber
from kernel.core.process import Thread
from kernel.dispatch.dispatcher import Dispatcher
from kernel.event_loop import guards
from kernel.event_loop.signals import set_mask
from kernel.gate import Gate
from kernel.journal.journal import Journal

Steps = Sequence[Callable[[], None]]

EXIT_CODE = 70  # of a child that would have gone on as the daemon (EX_SOFTWARE of sysexits.h)
OURS = ("kernel", "llmosd", "uvloop")  # packages whose handlers of signals a child must not have

# Where a child would go on as the daemon. Each is looked up at every call, so the child can replace it in its memory.
ENTRANCES: tuple[tuple[Any, str], ...] = (
    (Gate, "enter"),
    (Gate, "call"),
    (Gate, "call_by"),
    (Journal, "_enqueue"),
    (Dispatcher, "_run"),
    (Fiber, "step"),
)
END_OF_STEP = "_leave_task"  # a step of `kernel.core.fiber` calls it when the coroutine has returned or waits


class _ForkGuard:
    """The facts that a child needs about its daemon. The daemon lives as long as the pipe `_alive` has a writer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, private: Iterable[Path], restore: Steps) -> None:
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._private = tuple(map(str, private))
        self._restore = restore
        self._watched, self._alive = os.pipe()
        self._forking = threading.local()

    def before(self) -> None:
        """Hold back signals during a fork: until a child has reset its handlers, they would wake the daemon."""
        self._forking.mask = set_mask(signal.SIG_BLOCK, signal.valid_signals())

    def in_parent(self) -> None:
        set_mask(signal.SIG_SETMASK, self._forking.mask)

    def in_child(self) -> None:
        """Make this process, a child that was just forked, harmless to the daemon."""
        if self._is_starting_a_program():
            return  # uvloop forked to execute a program, which closes and resets everything, the signals included
        for step in (
            guards.uninstall,
            self._end_with_daemon,
            self._reset_signals,
            self._drop_descriptors,
            self._close_entrances,
            self._empty_the_loop,
            *self._restore,
            _write_like_a_program,
        ):
            with contextlib.suppress(Exception):
                step()
        # Objects of the daemon stay untouched: the collector must not finalize coroutines of agents in this process.
        gc.freeze()
        set_mask(signal.SIG_SETMASK, self._forking.mask)
        sys.set_asyncgen_hooks(None, None)

    def _is_starting_a_program(self) -> bool:
        return any(type(part).__name__ == "UVProcessTransport" for part in gc.get_referents(self._loop))

    def _end_with_daemon(self) -> None:
        """Have the system kill this process when the pipe has no writer left.

        `PR_SET_PDEATHSIG` would kill it as soon as the thread that forked it ends. A signal for the end of a pipe has
        one receiver per open file, so each child opens the pipe again. An exec closes it, and ends the arrangement.
        """
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1
        watched = os.open(f"/proc/self/fd/{self._watched}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(watched, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(watched, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(watched, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
        poll = select.poll()
        poll.register(watched)
        if poll.poll(0):  # the daemon ended before the signal was set
            os._exit(EXIT_CODE)

    def _reset_signals(self) -> None:
        """Undo the handlers of the daemon: a TERM to this process would otherwise wake the daemon, which would stop."""
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            # Python does not know the handler of SIGCHLD, by which libuv writes to a pipe of the daemon.
            if _is_ours(handler) or (number == signal.SIGCHLD and not callable(handler)):
                signal.signal(number, signal.SIG_DFL)

    def _drop_descriptors(self) -> None:
        """Put /dev/null in the place of the sockets, locks and files of the daemon.

        A child that kept them would hold the locks after the daemon's death, keep clients and drivers from noticing
        that death, and take connections from the daemon. The numbers stay in use, because objects of the daemon may
        still close them.
        """
        poller = _poller(self._loop)
        descriptors = {int(name) for name in os.listdir("/proc/self/fd")}
        private = _polled(poller) & descriptors
        private.update(part.fileno() for part in gc.get_referents(self._loop) if isinstance(part, socket.socket))
        private.update(number for number in descriptors - private if number > 2 and self._is_private(number))
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number in private - {0, 1, 2, null}:
            os.dup2(null, number, inheritable=False)
        if poller is not None:
            with select.epoll() as empty:
                os.dup2(empty.fileno(), poller, inheritable=False)
        os.close(null)

    def _is_private(self, number: int) -> bool:
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
            if target.startswith("socket:"):
                with socket.socket(fileno=os.dup(number)) as copy:
                    name = copy.getsockname()
                return name in self._private
            return any(target == path or target.startswith(f"{path}/") for path in self._private)
        except OSError:
            return False

    def _close_entrances(self) -> None:
        for owner, name in ENTRANCES:
            setattr(owner, name, _leave)
        setattr(fiber, END_OF_STEP, _end_of_step)

    def _empty_the_loop(self) -> None:
        """Make the loop run nothing but the end of this process, if the child returns from a callback into the loop."""
        loop: Any = self._loop
        in_callback = threading.get_ident() == self._loop_thread and not isinstance(asyncio.current_task(loop), Thread)
        if in_callback:  # at the end of a step, `_end_of_step` runs before anything of the loop
            for part in gc.get_referents(loop):
                if type(part).__name__ == "deque":
                    part.clear()
                elif isinstance(part, set):
                    for timer in tuple(part):
                        if isinstance(timer, asyncio.TimerHandle) or type(timer).__name__ == "TimerHandle":
                            timer.cancel()
            loop.call_soon(_leave)
        loop.call_soon_threadsafe = _leave  # by which the threads of tools and executors report what they return


def guard(loop: asyncio.AbstractEventLoop, private: Iterable[Path], restore: Steps) -> None:
    """Make every forked child of this process harmless from now on. `loop` is the loop of the daemon.

    `private`: the files, sockets and folders of the daemon, which a child closes. A child calls the functions of
    `restore`, which undo what the daemon has replaced for the whole interpreter.
    """
    guard = _ForkGuard(loop, private, restore)
    os.register_at_fork(before=guard.before, after_in_parent=guard.in_parent, after_in_child=guard.in_child)


def end_workers() -> None:
    """Terminate the processes that agents have started with `multiprocessing`, because they outlive an `os._exit`."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None:
        with contextlib.suppress(Exception):
            for child in multiprocessing.active_children():
                child.terminate()


# ---- in the child


def _leave(*_: object, **__: object) -> NoReturn:
    """End the process, with a sentence on standard error."""
    _exit(
        EXIT_CODE,
        f"llmosd: process {os.getpid()}, a forked child of an agent or a tool, would have gone on as a second daemon, "
        "and was ended; after `os.fork()` a child may exec, or must end with `os._exit()`\n",
    )


def _end_of_step(_: object, thread: Thread) -> NoReturn:
    """End the process at the end of the step in which it was forked. `sys.exit` in the child sets its exit code."""
    error = None if not thread.done() or thread.cancelled() else thread.exception()
    if isinstance(error, SystemExit):
        code = error.code
        _exit(code if isinstance(code, int) else 0 if code is None else 1, f"{code}\n" if isinstance(code, str) else "")
    _leave()


def _exit(code: int, text: str) -> NoReturn:
    """Exit with `code` after writing `text`, unless nothing reads it. No handler of the daemon's exit runs."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if text and poll.poll(0):
            os.write(2, text.encode(errors="backslashreplace")[: select.PIPE_BUF])
    os._exit(code & 0xFF)


def _is_ours(handler: Any) -> bool:
    """Whether a handler of a signal belongs to the daemon, and not to an agent."""
    owner = getattr(handler, "__self__", None)
    name = getattr(handler, "__module__", None) if owner is None else type(owner).__module__
    return str(name).partition(".")[0] in OURS


def _poller(loop: Any) -> int | None:
    """The descriptor on which the loop waits."""
    if hasattr(loop, "_get_backend_id"):
        return int(loop._get_backend_id())
    return None


def _polled(poller: int | None) -> set[int]:
    """The descriptors on which the loop waits: those of connections, drivers, and whatever agents have added."""
    if poller is None:
        return set()
    with open(f"/proc/self/fdinfo/{poller}") as lines:
        return {int(line.split()[1]) for line in lines if line.startswith("tfd:")}


def _write_like_a_program() -> None:
    """Write crashes to standard error, not to the file for crashes of the daemon. Lose no line in an `os._exit`."""
    faulthandler.enable(2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # Python may have no standard output
