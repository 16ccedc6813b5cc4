"""The default executor of the loop: threads for functions of agents that block, as by `asyncio.to_thread`.

The daemon makes one, and the guarded loop reports the ends of processes to it. No process takes all of its threads, and
what a process has left in line is dropped when the process ends. It cannot end a function that runs.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress

from kernel.core.process import Process
from kernel.event_loop.owner import acting_process
from kernel.lib.worker_threads import DaemonThreads, WorkItem

MOST = 256  # functions that run at the same time
EACH = 64  # of them, for one process
MOST_ABANDONED = 256  # threads, in addition, in place of those in which functions of ended processes still run


class AgentThreads(DaemonThreads):
    """At most `most` functions run at the same time, at most `each` of them for one process."""

    def __init__(self, name: str = "llmosd agents", most: int = MOST, each: int = EACH) -> None:
        super().__init__(name, most)
        self._regular = most
        self._each = each
        self._active: dict[Process, int] = {}  # how many of its functions run, or are in line
        self._held: dict[Process, deque[WorkItem]] = {}  # its further functions, which join the line later
        self._abandoned: dict[Process, int] = {}  # how many functions of an ended process still run

    def process_ended(self, process: Process) -> None:
        """Drop what waits for a thread. Replace the threads in which functions of the process still run."""
        if process not in self._active:  # true of most processes
            return
        with self._changed:
            dropped = list(self._held.pop(process, ()))
            active = self._active.pop(process, 0)
            waiting = [item for item in self._line if item.owner is process]
            if waiting:
                self._line = deque(item for item in self._line if item.owner is not process)
            if running := active - len(waiting):
                self._abandoned[process] = running
                self._adjust()
            for _ in range(min(running, len(self._line))):
                with suppress(RuntimeError):  # the system has no more threads
                    self._serve_one_more()
        for item in (*waiting, *dropped):
            item.future.cancel()

    # ---- with the lock held

    def _accept(self, item: WorkItem) -> None:
        owner = acting_process()
        if owner is None or owner.status is not None:
            super()._accept(item)
            return
        item.owner = owner
        active = self._active.get(owner, 0)
        if active >= self._each:
            self._held.setdefault(owner, deque()).append(item)
            return
        super()._accept(item)
        self._active[owner] = active + 1

    def _finished(self, item: WorkItem) -> None:
        owner = item.owner
        if owner in self._abandoned:
            self._take_off(self._abandoned, owner)
            self._adjust()
        elif owner in self._active:
            if held := self._held.get(owner):
                self._line.append(held.popleft())  # this thread takes it, or one that was before it in line
            else:
                self._held.pop(owner, None)
                self._take_off(self._active, owner)

    def _adjust(self) -> None:
        self._most = self._regular + min(sum(self._abandoned.values()), MOST_ABANDONED)

    @staticmethod
    def _take_off(counts: dict[Process, int], owner: Process) -> None:
        counts[owner] -= 1
        if not counts[owner]:
            del counts[owner]
