"""Clean-ups of killed threads, which run even while the process of the thread is suspended.

The dispatcher asks whether a thread that a suspension would hold back is part of a clean-up. These are: the killed
thread, the threads that its clean-up starts, and the threads below it that are cancelled, such as those of a
`TaskGroup`. `kernel.processes.threads` bounds the time of a clean-up. This module never steps a thread.
"""

from __future__ import annotations

from kernel.core.fiber import RUNNING
from kernel.core.process import Process, Thread


class CleanUps:
    """The clean-ups that run now, by process: the killed threads, each with the threads that its clean-up started."""

    __slots__ = ("_running",)

    def __init__(self) -> None:
        self._running: dict[Process, dict[Thread, set[Thread]]] = {}

    def __bool__(self) -> bool:
        return bool(self._running)

    def begin(self, killed: Thread) -> None:
        """The clean-up of `killed` begins. Does nothing if it runs already."""
        self._running.setdefault(killed.process, {}).setdefault(killed, {killed})

    def end(self, killed: Thread) -> None:
        """The clean-up of `killed` is over. Does nothing if none runs."""
        of_process = self._running.get(killed.process)
        if of_process is not None:
            of_process.pop(killed, None)
            if not of_process:
                del self._running[killed.process]

    def started(self, thread: Thread, maker: Thread) -> None:
        """`thread` is new. It is part of the clean-up in whose step it is made; `maker` has made the present step."""
        if maker.state is RUNNING and maker.process is thread.process:
            for parts in self._running.get(thread.process, {}).values():
                if maker in parts:
                    parts.add(thread)

    def includes(self, thread: Thread) -> bool:
        """Whether `thread` is part of a clean-up."""
        if (of_process := self._running.get(thread.process)) is None:
            return False
        cancelled = thread.cancelling() > 0
        return any(
            thread in parts or (cancelled and thread.path.startswith(f"{killed.path}-"))
            for killed, parts in of_process.items()
        )
