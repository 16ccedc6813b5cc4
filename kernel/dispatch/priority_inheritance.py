"""Priority inheritance over calls: on the slots of models a process is as urgent as its most urgent caller.

After Sha, Rajkumar, Lehoczky, "Priority Inheritance Protocols: An Approach to Real-Time Synchronization", IEEE
Transactions on Computers 39(9), 1990, section III. A sequence asks for the effective priority of its thread. When a
call arrives or is answered, the resource manager asks which processes may now have another effective priority.
Inheritance never changes the order of steps: they are short, so the dispatcher goes by the threads' own priorities.
"""

from __future__ import annotations

from collections.abc import Iterator

from kernel.core.process import PendingCalls, Process, Thread


def effective_priority(thread: Thread) -> int:
    """The priority of `thread`, or that of the most urgent caller of its process, callers of callers included."""
    highest = thread.priority
    if thread.process.pending_calls:
        seen = {thread.process}
        stack = [thread.process]
        while stack:
            for caller in (stack.pop().pending_calls or {}).values():
                if caller is None:  # the caller has given up
                    continue
                highest = max(highest, caller.priority)
                if caller.process not in seen:
                    seen.add(caller.process)
                    stack.append(caller.process)
    return highest


def awaited_by(process: Process) -> Iterator[Process]:
    """`process`, and every process whose answer it waits for, directly or through other processes."""
    seen = {process}
    stack = [process]
    while stack:
        one = stack.pop()
        yield one
        for thread in one.threads:
            wait = thread.waits_for
            if isinstance(wait, PendingCalls) and wait.process not in seen:
                seen.add(wait.process)
                stack.append(wait.process)
