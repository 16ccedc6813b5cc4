"""Priority inheritance over calls: on the slots of models a process is as urgent as its most urgent caller.

After Sha, Rajkumar, Lehoczky, "Priority Inheritance Protocols: An Approach to Real-Time Synchronization", IEEE
Transactions on Computers 39(9), 1990, section III. A sequence asks for the effective priority of its thread. The
messages notify this module when a caller begins or ceases to wait, `Control` when a priority changes or a thread is
suspended. A change costs the same at any number of callers, and follows the chain of calls only as far as it matters.
Inheritance never changes the order of steps: they are short, so the dispatcher goes by the threads' own priorities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kernel.core.answers import UNANSWERED
from kernel.core.inherited_priority import NOTHING, InheritedPriority
from kernel.core.process import PendingCalls, Process, Thread

Lending = tuple[Process, Thread]  # a process and a thread that waits, or waited, for its reply


def effective_priority(thread: Thread) -> int:
    """The priority of `thread`, or that of the most urgent caller of its process, callers of callers included."""
    pending = thread.process.pending_calls
    if pending is None or pending.inherited is None:
        return thread.priority
    return max(thread.priority, pending.inherited.highest)


class PriorityInheritance:
    """Knows what each waiting caller lends to the process that it called: its effective priority, if that is higher.

    A caller lends nothing while it is suspended, because it could not use the reply. The `on_change` hooks are called
    with each process that now inherits another priority.
    """

    def __init__(self) -> None:
        self.on_change: list[Callable[[Process], None]] = []

    def changed(self, process: Process, caller: Thread) -> None:
        """`caller` has begun to wait for a reply of `process`, or no longer waits for it."""
        self._update([(process, caller)])

    def priority_set(self, process: Process, thread: Thread | None) -> None:
        """The priority of `process`, or only of its `thread`, has changed."""
        if thread is None:
            process.lowest_priority = process.priority
        else:
            process.lowest_priority = min(process.lowest_priority, thread.priority)
        callers = [(process, caller) for caller in (process.pending_calls or {}).values() if caller is not None]
        self._update([*callers, *_lendings(process)])

    def suspension_changed(self, process: Process, thread: Thread | None) -> None:
        """`process`, or only its `thread`, was suspended or resumed."""
        self._update(list(_lendings(process)))

    def _update(self, lendings: list[Lending]) -> None:
        """Compute again what each caller in `lendings` lends, and all that follows from it."""
        changed: dict[Process, None] = {}
        for process, caller in lendings:  # grows during the loop
            for other in _update_one(process, caller):
                changed[other] = None
                lendings += _lendings(other)
        for process in changed:
            for hook in self.on_change:
                hook(process)


def _update_one(process: Process, caller: Thread) -> set[Process] | tuple[Process, ...]:
    """Compute again what `caller` lends to `process`. Returns the processes that now inherit another priority."""
    pending = process.pending_calls
    if pending is None:
        return ()
    priority = _lent_by(caller)
    if priority <= process.lowest_priority:
        priority = NOTHING
    inherited = pending.inherited
    if inherited is None:
        if priority == NOTHING:
            return ()
        inherited = pending.inherited = InheritedPriority()
    before, lent = inherited.highest, inherited.lent_by(caller)
    if priority == lent:
        # The priority of the caller may now be no longer its own, but one that it inherits from `process` itself.
        return () if caller.priority >= lent or lent != before else _withdraw(process, before)
    inherited.set(caller, priority)
    if inherited.highest != before:
        if not inherited:
            pending.inherited = None
        return (process,)
    return () if lent != before else _withdraw(process, before)


def _withdraw(process: Process, priority: int) -> set[Process] | tuple[()]:
    """Withdraw `priority` from `process` and its callers if they only inherit it from each other.

    Two processes that call each other would otherwise stay urgent after the caller from which both had it has gone.
    Returns the processes from which it was withdrawn: none if the search finds a caller whose own priority it is.
    """
    found, stack = {process}, [process]
    while stack:
        pending = stack.pop().pending_calls
        if pending is None or pending.inherited is None:
            continue
        for caller in pending.inherited.who_lend(priority):
            if caller.priority >= priority:
                return ()
            if caller.process not in found:
                found.add(caller.process)
                stack.append(caller.process)
    for one in found:
        pending = one.pending_calls
        if pending is None or pending.inherited is None:
            continue
        for caller in tuple(pending.inherited.who_lend(priority)):
            pending.inherited.set(caller, caller.priority if caller.priority > one.lowest_priority else NOTHING)
        if not pending.inherited:
            pending.inherited = None
    return found


def _lent_by(caller: Thread) -> int:
    if caller.answer is not UNANSWERED or caller.suspended or caller.process.suspended:
        return NOTHING
    return effective_priority(caller)


def _lendings(process: Process) -> Iterator[Lending]:
    """The calls for whose replies threads of `process` wait."""
    for thread in process.threads:
        wait = thread.waits_for
        if isinstance(wait, PendingCalls) and thread.answer is UNANSWERED:
            yield wait.process, thread
