"""What threads wait for, held against what has come: nobody waits in vain, and nobody for each other unknown.

Used by `invariants`. Each check yields sentences about what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kernel.core.fiber import BLOCKED
from kernel.core.process import PendingCalls, Thread
from kernel.core.selector import Selector
from kernel.core.waits import EndOf, RoomIn, Uninterruptible
from kernel.kernel import Kernel
from kernel.models.sequence import Sequence
from kernel.sync.barrier import Barrier
from kernel.sync.event import Event
from kernel.sync.lock import Lock
from kernel.sync.semaphore import Semaphore
from tests.support.exploration import inside


def waits(kernel: Kernel) -> Iterator[str]:
    """Each thread is blocked on something that has not come."""
    for process in kernel.table.alive.values():
        for thread in process.threads:
            if thread.state is not BLOCKED:
                yield f"{thread} is {thread.state} and does not get on"
            elif why := _unfounded(kernel, thread):
                yield f"{thread} of process {process.pid} waits for {thread.waits_for}, and {why}"


def all_time_has_passed(kernel: Kernel) -> Iterator[str]:
    for process in kernel.table.alive.values():
        for thread in process.threads:
            if thread.timers:
                yield f"{thread} has {thread.timers} timers set, and their time has long come"
            if isinstance(thread.waits_for, Sequence) or thread.waits_for == "time":
                yield f"{thread} of process {process.pid} waits for {thread.waits_for}, and has had all the time"
            wards = any(child.program == "ward" for child in process.children)
            if thread.waits_for == "children" and not wards:
                yield f"{thread} of process {process.pid} waits for children, and there are none"
    for runtime in kernel.resources._runtimes.values():
        if gone := [one.id for one in runtime.active.sequences.values() if one.cancelled]:
            yield f"the sequences {gone} were cancelled, and are not forgotten"


def _unfounded(kernel: Kernel, thread: Thread) -> str:
    """Why `thread` should not wait any more."""
    wait, box = thread.waits_for, thread.process.mailbox
    named = inside.named(kernel)
    if isinstance(wait, Uninterruptible):
        wait = wait._wait
    if wait == "message" or isinstance(wait, Selector):
        assert box is not None
        selection = wait if isinstance(wait, Selector) else None
        if not (thread is box.receiver or any(thread is one for one, _ in box.selectors or ())):
            return "does not stand in line for it"
        now = kernel.loop.time()
        fresh = [message for message in box.peek() if message.deadline is None or message.deadline > now]
        # One may lie there that its predicate fails on.
        wanted = [m for m in fresh if selection is None or (selection.where is None and selection.matches(m))]
        return f"there are {wanted}" if wanted else ""
    if isinstance(wait, RoomIn):
        line = wait.process.mailbox._senders if wait.process.mailbox is not None else None
        return "" if not wait.process.ended and line and thread in line else "does not stand in line for it"
    if isinstance(wait, EndOf):
        return "it has ended" if wait.process.ended else ""
    if isinstance(wait, PendingCalls):
        callers = (wait.process.pending_calls or {}).values()
        return "" if not wait.process.ended and thread in callers else "nobody owes it an answer"
    if isinstance(wait, Lock):
        return "" if wait.holder is not None and thread in wait.waiting else "nobody holds it, or it is not in line"
    if isinstance(wait, Semaphore):
        return "" if not wait._free and thread in wait.waiting else "there is one free, or it is not in line"
    if isinstance(wait, Sequence):
        return "it is over" if wait.finished else ""
    kind, _, name = str(wait).partition(" ")
    at = named.get(name)
    if kind == "event":
        return "" if isinstance(at, Event) and not at.is_set and thread in at._waiting else "it is set"
    if kind == "barrier":
        return "" if isinstance(at, Barrier) and thread in at._waiting else "it is not there"
    if kind == "condition":
        condition = at.condition if isinstance(at, Lock) else None
        return "" if condition is not None and thread in condition._waiting else "it is not in line"
    return "" if kind in ("outside", "end", "time", "children", "reader") else "nothing is known of it"


def knots(kernel: Kernel) -> Iterator[str]:
    """Take away whoever may get on, again and again: those who are left wait for each other, and should know."""
    stuck: dict[Thread, Any] = {}
    for process in kernel.table.alive.values():
        for thread in process.threads:
            wait = thread.waits_for
            enders = None if isinstance(wait, str) or thread.timers else wait.ended_by()
            if enders is not None and thread.state is BLOCKED:
                stuck[thread] = list(enders)
    while freed := [thread for thread, enders in stuck.items() if any(ender not in stuck for ender in enders)]:
        for thread in freed:
            del stuck[thread]
    if stuck:
        yield f"a knot was not found: {list(stuck)}"
