"""The owner of the code that runs now: the process of an agent, or none for the kernel.

The guarded loop and the guards of the standard library call it. A thread of the kernel belongs to its process. Other
code, such as a callback of the loop, belongs to the process in its context variables: callbacks inherit them, and the
kernel's own callbacks and tasks run without them. This module never changes anything.
"""

from __future__ import annotations

import asyncio

from kernel.core.process import Process, Thread
from kernel.programs.origin import ORIGIN


def acting_process() -> Process | None:
    """The process whose code runs now, in any thread of Linux. None: the kernel, or code without a known process."""
    loop = asyncio._get_running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    if isinstance(task, Thread):
        return task.process
    origin = ORIGIN.get()
    return origin if isinstance(origin, Process) else None


def described(process: Process) -> str:
    """`process` as errors name it."""
    return f"process {process.pid} ({process.program})"
