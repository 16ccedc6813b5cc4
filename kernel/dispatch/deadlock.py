"""Deadlock detection, at the moment a knot closes: threads that wait for each other, and nothing else could end it.

Called by whoever parks a thread, and when a thread has ended and when a process is resumed. A wait is ended by
any one of some threads (the OR model), so a mere cycle is no deadlock: a thread is stuck only if every thread that it
reaches is (a knot; Holt, "Some Deadlock Properties of Computer Systems", 1972). The search ends at the first thread
that is live, so where nothing is wrong it costs next to nothing. It knows the kernel's own timers, not agents' ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from ipc.errors import DeadlockDetected
from kernel.core.fiber import BLOCKED
from kernel.core.process import Process, Thread
from kernel.core.waits import Uninterruptible

SPELLED_OUT = 20  # threads of a knot that the error names


def check(thread: Thread) -> None:
    """Call with the running `thread` when `thread.waits_for` is set, right before it awaits PARK.

    Raises `DeadlockDetected` if the wait would close a knot. Let it leave by the way that a cancellation takes.
    """
    knot = _closed_by(thread)
    if knot is not None:
        raise _described(knot)


def resolve(thread: Thread) -> None:
    """As `check`, for a running `thread` whose wait must not fail: another one of the knot gets the error."""
    knot = _closed_by(thread)
    if knot is not None:
        _break(knot)


def thread_ended(process: Process) -> None:
    """A thread of `process` ended, which may have been the last hope of those who wait for the process.

    They wait for all its other threads as well: if any one of these reaches a live thread, so do they.
    """
    if process.threads and not process.dying:
        _break_if_stuck(next(iter(process.threads)))


def resumed(process: Process) -> None:
    """While it was suspended none of its threads could close a knot: whoever resumed it might have acted otherwise."""
    for thread in tuple(process.threads):
        _break_if_stuck(thread)


def _closed_by(thread: Thread) -> list[Thread] | None:
    """The knot that `thread`, which is running, would close by its wait."""
    process = thread.process
    if thread.timers or process.suspended or process.dying or thread.about_to_be_cancelled:
        return None
    return _reached(thread)


def _break_if_stuck(thread: Thread) -> None:
    if _is_stuck(thread) and (knot := _reached(thread)) is not None:
        _break(knot)


def _is_stuck(thread: Thread) -> bool:
    """Whether only others could get `thread` on; which ones is up to its wait."""
    process = thread.process
    return thread.state == BLOCKED and not (thread.timers or process.suspended or process.dying)


def _enders(thread: Thread) -> Iterable[Thread] | None:
    wait = thread.waits_for
    return None if isinstance(wait, str) else wait.ended_by()


def _reached(start: Thread) -> list[Thread] | None:
    """`start` and all threads reached from it, if none of them is live."""
    found, seen = [start], {start}
    for thread in found:  # which grows meanwhile
        enders = _enders(thread)
        if enders is None:
            return None
        for ender in enders:
            if ender not in seen:
                if not _is_stuck(ender):
                    return None
                seen.add(ender)
                found.append(ender)
    return found


def _break(knot: list[Thread]) -> None:
    """Give the error to a thread of the youngest process: the least is lost if that one has to start over.

    Not all of a knot can be firm: whoever holds a lock that a firm wait wants back took it after that wait began.
    """
    victims = [thread for thread in knot if not isinstance(thread.waits_for, Uninterruptible)]
    if victims:
        victim = max(victims, key=lambda thread: thread.process.pid)
        # Told from the view of its victim.
        victim.interrupt(_described(_reached(victim) or knot))


def _described(knot: list[Thread]) -> DeadlockDetected:
    told = knot[:SPELLED_OUT]
    words = "; ".join(f"{_name(thread)} waits for {thread.waits_for}" for thread in told)
    more = f"; and {len(knot) - len(told)} more" if len(knot) > len(told) else ""
    rows: list[dict[str, Any]] = [
        {
            "pid": thread.process.pid,
            "program": thread.process.program,
            "waits_for": str(thread.waits_for),
            "ended_by": [ender.process.pid for ender in itertools.islice(_enders(thread) or (), SPELLED_OUT)],
        }
        for thread in told
    ]
    return DeadlockDetected(
        f"this wait would never end: {words}{more}. Release what you hold, let the others go on, and try again",
        knot=rows,
        size=len(knot),
    )


def _name(thread: Thread) -> str:
    return f"process {thread.process.pid} ({thread.process.program})"
