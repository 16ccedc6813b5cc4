"""Deadlock detection at the moment a knot closes: a set of threads that wait for each other and for nothing else.

Called before a thread parks, after a thread ends and when a process is resumed. Any one of several threads can end a
wait (the OR model), so a cycle alone is no deadlock: a thread is deadlocked only if every thread that it reaches waits,
too (a knot; Holt, "Some Deadlock Properties of Computer Systems", 1972). The search ends at the first live thread, so
it costs next to nothing where nothing is wrong. It never sees the timers of agents, such as `asyncio.timeout`, only the
kernel's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from ipc.errors import DeadlockDetected
from kernel.core.fiber import BLOCKED
from kernel.core.process import Process, Thread
from kernel.core.waits import Uninterruptible

MAX_NAMED = 20  # how many threads of a knot the error names


def check(thread: Thread) -> None:
    """Check the running `thread`. Call this when `thread.waits_for` is set, right before the thread awaits PARK.

    Raises `DeadlockDetected` if the wait would close a knot. The caller cleans up as it does for a cancellation.
    """
    knot = _knot_closed_by(thread)
    if knot is not None:
        raise _error_for(knot)


def resolve(thread: Thread) -> None:
    """Do the same as `check` for a wait that must not fail: another thread of the knot gets the error."""
    knot = _knot_closed_by(thread)
    if knot is not None:
        _break(knot)


def thread_ended(process: Process) -> None:
    """Look for a knot after a thread of `process` has ended: it may have been the last live thread of the process.

    A thread that waits for the process reaches all its remaining threads, so checking one of these is enough.
    """
    if process.threads and not process.dying:
        _break_if_stuck(next(iter(process.threads)))


def look_again(thread: Thread) -> None:
    """Look for a knot with `thread`, of whose wait something that could end it from outside has gone."""
    _break_if_stuck(thread)


def resumed(process: Process) -> None:
    """Look for knots with a thread of `process`. No knot could close before: suspended threads are live."""
    for thread in tuple(process.threads):
        _break_if_stuck(thread)


def _knot_closed_by(thread: Thread) -> list[Thread] | None:
    """The knot that the wait of the running `thread` would close, if any."""
    process = thread.process
    if thread.timers or process.suspended or process.dying or thread.about_to_be_cancelled:
        return None
    return None if _reaches_live(thread) else _all_reached(thread)


def _break_if_stuck(thread: Thread) -> None:
    if _is_stuck(thread) and not _reaches_live(thread):
        _break(_all_reached(thread))


def _is_stuck(thread: Thread) -> bool:
    """Whether `thread` can go on only when its wait ends. It is live nevertheless if `_enders` is None."""
    process = thread.process
    return thread.state == BLOCKED and not (thread.timers or process.suspended or process.dying)


def _enders(thread: Thread) -> Iterable[Thread] | None:
    return thread.waits_for.ended_by()


def _all_reached(start: Thread) -> list[Thread]:
    """`start` and all threads that it reaches. None of them is live."""
    found = {start: None}
    knot = [start]
    for thread in knot:  # grows during the loop; the threads that are reached by the fewest waits come first
        new = [ender for ender in _enders(thread) or () if ender not in found]
        found |= dict.fromkeys(new)
        knot += dict.fromkeys(new)
    return knot


def _reaches_live(start: Thread) -> bool:
    """Whether `start` reaches a live thread.

    Depth first, and looks at the threads that can end a wait one at a time: a server may have thousands of them, and
    the wait of the first nearly always leads to a live thread.
    """
    enders = start.waits_for.ended_by()
    if enders is None:
        return True
    seen, stack = {start}, [iter(enders)]
    while stack:
        for ender in stack[-1]:
            if ender not in seen:
                process = ender.process  # the same as `_is_stuck`, for speed
                if ender.state != BLOCKED or ender.timers or process.suspended or process.dying:
                    return True
                enders = ender.waits_for.ended_by()
                if enders is None:
                    return True
                seen.add(ender)
                stack.append(iter(enders))
                break
        else:
            stack.pop()
    return False


def _break(knot: list[Thread]) -> None:
    """Raise the error in a thread of the youngest process, which loses the least work if it has to start over.

    A knot never consists of uninterruptible waits alone: if such a wait wants its lock back, the holder took the lock
    after that wait began. So along a chain of such waits each began later than the one before, and the chain ends.
    """
    victims = [thread for thread in knot if not isinstance(thread.waits_for, Uninterruptible)]
    if victims:
        victim = max(victims, key=lambda thread: thread.process.pid)
        # The error lists the threads as the victim reaches them.
        victim.interrupt(_error_for(knot if _reaches_live(victim) else _all_reached(victim)))


def _error_for(knot: list[Thread]) -> DeadlockDetected:
    named = knot[:MAX_NAMED]
    words = "; ".join(f"{_label(thread)} waits for {thread.waits_for}" for thread in named)
    more = f"; and {len(knot) - len(named)} more" if len(knot) > len(named) else ""
    rows: list[dict[str, Any]] = [
        {
            "pid": thread.process.pid,
            "program": thread.process.program,
            "waits_for": str(thread.waits_for),
            "ended_by": [ender.process.pid for ender in itertools.islice(_enders(thread) or (), MAX_NAMED)],
        }
        for thread in named
    ]
    return DeadlockDetected(
        f"this wait would never end: {words}{more}. Release everything you hold, let the others go on, and try again",
        knot=rows,
        size=len(knot),
    )


def _label(thread: Thread) -> str:
    return f"process {thread.process.pid} ({thread.process.program})"
