"""The priorities that processes inherit from their callers, computed from scratch to check those of the kernel.

An invariant of the explorations, and of the tests of priority inheritance. It never uses the tables of the kernel's
inheritance, only pending calls, priorities and suspensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kernel.core.process import Process
from kernel.dispatch.priority_inheritance import effective_priority


def wrong_priorities(processes: Iterable[Process]) -> Iterator[str]:
    """A sentence for each thread whose effective priority is wrong."""
    processes = list(processes)
    inherited = _inherited(processes)
    for process in processes:
        for thread in process.threads:
            right, known = max(thread.priority, inherited[process]), effective_priority(thread)
            if right != known:
                yield f"{thread} has the effective priority {known}; its callers make it {right}"
        pending = process.pending_calls
        if pending is not None and pending.inherited is not None and not pending.inherited:
            yield f"process {process.pid} has an empty table of inherited priorities"


def _inherited(processes: list[Process]) -> dict[Process, int]:
    """The highest priority that each process gets from its callers, callers of callers included."""
    inherited = dict.fromkeys(processes, -100)
    while True:
        before = dict(inherited)
        for process in processes:
            for caller in (process.pending_calls or {}).values():
                if caller is None or caller.suspended or caller.process.suspended:
                    continue
                inherited[process] = max(inherited[process], caller.priority, inherited[caller.process])
        if inherited == before:
            return inherited
