"""Priority inheritance over calls: who is waited for is as urgent, on the slots of models, as the most urgent waiter.

After Sha, Rajkumar, Lehoczky, "Priority Inheritance Protocols: An Approach to Real-Time Synchronization", IEEE
Transactions on Computers 39(9), 1990, section III. Sequences ask how urgent they are; messaging, whose sequences that
may concern when a call comes or is answered. Threads are stepped by their own priorities: a step is short.
"""

from __future__ import annotations

from collections.abc import Iterator

from kernel.core.process import PendingCalls, Process, Thread


def urgency(thread: Thread) -> int:
    """The priority of `thread`, or of whoever waits for an answer of its process, at first or at second hand."""
    highest = thread.priority
    if thread.process.pending_calls:
        seen = {thread.process}
        stack = [thread.process]
        while stack:
            for caller in (stack.pop().pending_calls or {}).values():
                if caller is None:  # it has given up
                    continue
                highest = max(highest, caller.priority)
                if caller.process not in seen:
                    seen.add(caller.process)
                    stack.append(caller.process)
    return highest


def behind(process: Process) -> Iterator[Process]:
    """`process`, and all whose answers it waits for, at first or at second hand."""
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
