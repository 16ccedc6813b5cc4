"""Checks of waiting threads: each waits for something that has not happened, and no knot of threads is undetected.

Used by `invariants`. Each check yields a sentence for each problem; it never asserts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kernel.core.fiber import BLOCKED
from kernel.core.process import PendingCalls, Thread
from kernel.core.selector import Selector
from kernel.core.waits import EndOf, RoomIn, Uninterruptible
from kernel.kernel import Kernel
from kernel.models.call_wait import ModelCallWait
from kernel.sync.barrier import Barrier
from kernel.sync.event import Event
from kernel.sync.lock import Lock
from kernel.sync.semaphore import Semaphore
from tests.support.exploration import inside


def waits(kernel: Kernel) -> Iterator[str]:
    """Each thread is blocked on something that has not happened yet."""
    for process in kernel.table.alive.values():
        for thread in process.threads:
            if thread.state is not BLOCKED:
                yield f"{thread} is {thread.state}, but makes no progress"
            elif why := _unfounded(kernel, thread):
                yield f"{thread} of process {process.pid} waits for {thread.waits_for}, but {why}"


def all_time_has_passed(kernel: Kernel) -> Iterator[str]:
    for process in kernel.table.alive.values():
        for thread in process.threads:
            if thread.timers:
                yield f"{thread} has {thread.timers} timers set that are long overdue"
            if isinstance(thread.waits_for, ModelCallWait) or str(thread.waits_for) == "time":
                yield f"{thread} of process {process.pid} still waits for {thread.waits_for}"
            wards = any(child.program == "ward" for child in process.children)
            if str(thread.waits_for) == "children" and not wards:
                yield f"{thread} of process {process.pid} waits for children, but has none"
    for runtime in kernel.resources._runtimes.values():
        if gone := [one.id for one in runtime.active.sequences.values() if one.cancelled]:
            yield f"the sequences {gone} were cancelled, but are still in the table"


def _unfounded(kernel: Kernel, thread: Thread) -> str:
    """Why `thread` should not wait any more."""
    wait, box = thread.waits_for, thread.process.mailbox
    named = inside.named(kernel)
    if isinstance(wait, Uninterruptible):
        wait = wait._wait
    if str(wait) == "message" or isinstance(wait, Selector):
        assert box is not None
        selection = wait if isinstance(wait, Selector) else None
        if not (thread is box.receiver or any(thread is one for one in box.further or ())):
            return "is not queued for it"
        now = kernel.loop.time()
        fresh = [message for message in box.peek() if message.deadline is None or message.deadline > now]
        # The mailbox may hold a message on which the predicate fails.
        wanted = [m for m in fresh if selection is None or (selection.where is None and selection.matches(m))]
        return f"there are {wanted}" if wanted else ""
    if isinstance(wait, RoomIn):
        line = wait.process.mailbox.senders if wait.process.mailbox is not None else None
        return "" if not wait.process.ended and line and thread in line else "is not queued for it"
    if isinstance(wait, EndOf):
        return "it has ended" if wait.process.ended else ""
    if isinstance(wait, PendingCalls):
        callers = (wait.process.pending_calls or {}).values()
        return "" if not wait.process.ended and thread in callers else "no process owes it an answer"
    if isinstance(wait, Lock):
        return "" if wait.holder is not None and thread in wait.waiting else "no thread holds it, or it is not queued"
    if isinstance(wait, Semaphore):
        return "" if not wait._free and thread in wait.waiting else "a permit is free, or it is not queued"
    if isinstance(wait, ModelCallWait):
        return "it is over" if all(sequence.finished for sequence in wait._sequences) else ""
    kind, _, name = str(wait).partition(" ")
    at = named.get(name)
    if kind == "event":
        return "" if isinstance(at, Event) and not at.is_set and thread in at._waiting else "it is set"
    if kind == "barrier":
        return "" if isinstance(at, Barrier) and thread in at._waiting else "is not queued there"
    if kind == "condition":
        condition = at.condition if isinstance(at, Lock) else None
        return "" if condition is not None and thread in condition._waiting else "is not queued for it"
    return "" if kind in ("outside", "end", "time", "children", "reader") else "that is no known wait"


def knots(kernel: Kernel) -> Iterator[str]:
    """Remove each thread that one outside can wake, until none is left to remove: the rest are an undetected knot."""
    stuck: dict[Thread, Any] = {}
    for process in kernel.table.alive.values():
        for thread in process.threads:
            wait = thread.waits_for
            enders = None if thread.timers else wait.ended_by()
            if enders is not None and thread.state is BLOCKED:
                stuck[thread] = list(enders)
    while freed := [thread for thread, enders in stuck.items() if any(ender not in stuck for ender in enders)]:
        for thread in freed:
            del stuck[thread]
    if stuck:
        yield f"a knot was not detected: {list(stuck)}"
