"""Further sentences of an explanation: the line of code, the other threads, the deadline and the limits.

Called by the explainer. It reads processes and changes nothing.
"""

from __future__ import annotations

import os
import time
from itertools import islice
from types import FrameType
from typing import Any

from kernel.core.process import Process, Thread
from kernel.lib.wording import listed, quoted, show_seconds, verb
from kernel.processes.limits import LimitEnforcer

TOLERANCE = 0.5  # seconds by which two clocks may differ over the life of a process
MAX_THREADS = 3  # other threads that the notes name
OURS = ("kernel.", "llmosd.")  # modules that are no agent's
MAX_AWAITS = 64  # coroutines that await one another, up to the one that waits


def notes(process: Process, thread: Thread | None, limits: LimitEnforcer, now: float) -> list[str]:
    """The sentences about `process`, of which `thread` was explained. `now` is the time of the loop."""
    sentences = []
    if thread is not None and not process.is_client and (place := _place_in_code(thread)):
        sentences.append(f"Its code is at {place}")
    others = [other for other in process.threads if other is not thread]
    if thread is not None and others:
        named = [f"{other.path} ({_doing(other)})" for other in islice(others, MAX_THREADS)]
        also = f"{verb(len(others), 'thread', 'threads')} {listed(named, len(others))}"
        sentences.append(f"This is about thread {thread.path}; the process also has {also}")
    sentences += _ends(process, now)
    sentences += [
        f"{who[0].upper()}{who[1:]} has used {amount:g} of {maximum:g} {name}, its limit"
        for who, name, amount, maximum in limits.nearly_used(process)
    ]
    return sentences


def _doing(thread: Thread) -> str:
    wait = thread.shown_wait()
    return f"{thread.shown_state()}: {quoted(wait)}" if wait else thread.shown_state()


def _ends(process: Process, now: float) -> list[str]:
    """The times at which the kernel ends the process, whatever it waits for."""
    group, limits = process.group, process.limits
    if process.timer is not None and not process.dying:
        try:
            left = process.timer.when() - now
        except (AttributeError, TypeError):  # uvloop lacks it at delay 0
            left = 0.0
        wall = None if limits is None else limits.wall_seconds
        at_limit = wall is not None and abs(time.monotonic() - process.started + left - wall) < TOLERANCE
        cause = f"at its limit of {wall:g} wall seconds" if at_limit else "at its deadline"
        return [f"The kernel ends the process in {show_seconds(left)}, {cause}"]
    if group is not None and group.deadline is not None:
        return [f"The kernel ends its task in {show_seconds(group.deadline - now)}, at the deadline of the task"]
    return []


def _place_in_code(thread: Thread) -> str:
    """The line of the agent at which `thread` waits, and the innermost line if that is in another file."""
    coro: Any = thread.get_coro()
    frames: list[FrameType] = []
    for _ in range(MAX_AWAITS):
        frame = getattr(coro, "cr_frame", None) or getattr(coro, "gi_frame", None)
        if frame is None:
            break
        frames.append(frame)
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None)
    if not frames or frames[0].f_globals.get("__name__", "").startswith(OURS):
        return ""  # `create_task` made the thread from a system call
    first = frames[0].f_code.co_filename
    own = [frame for frame in frames if frame.f_code.co_filename == first][-1]
    deepest = frames[-1]
    place = _line(own)
    if thread.awaited_future is not None and deepest is not own:
        place += f", in a call that waits at {_line(deepest)}"
    return place


def _line(frame: FrameType) -> str:
    return f"line {frame.f_lineno} of {quoted(os.path.basename(frame.f_code.co_filename))} ({frame.f_code.co_name})"
