"""The process table: all living processes by pid, and the processes that ended last.

The kernel owns the table, and every subsystem that finds processes by pid reads it. The table never starts or ends
a process.
"""

from __future__ import annotations

from collections import OrderedDict

from ipc.errors import OutcomeForgotten, UnknownProcess
from kernel.core.child_outcomes import MOST, ChildOutcomes
from kernel.core.pids import PidAllocator
from kernel.core.process import Process

REMEMBERED = 512  # ended processes that `wait` and `logs` still find


class ProcessTable:
    """All living processes by pid, and the last ones that ended.

    `outcomes` has those that ended before, and for which their parents have not waited. `pids` gives each process a pid
    of its own. A durable process that restarts has its old pid again.
    """

    def __init__(self) -> None:
        self.alive: dict[int, Process] = {}
        self.ended: OrderedDict[int, Process] = OrderedDict()
        self.outcomes = ChildOutcomes()
        self.pids = PidAllocator()

    def get(self, pid: int) -> Process:
        """The living process `pid`. Raises `UnknownProcess`, which says whether `pid` has ended or never existed."""
        process = self.alive.get(pid)
        if process is None:
            raise self.unknown(pid)
        return process

    def find(self, pid: int) -> Process:
        """Process `pid`, living or among the remembered ended ones. Raises `UnknownProcess`."""
        process = self.alive.get(pid) or self.ended.get(pid)
        if process is None:
            raise self.unknown(pid)
        return process

    def bury(self, process: Process) -> None:
        """Move a process that has ended to the remembered ones. Connections of clients are not remembered."""
        del self.alive[process.pid]
        if self.outcomes:
            self.outcomes.parent_ended(process.pid)
        if process.is_client:
            return
        self.ended[process.pid] = process
        if len(self.ended) > REMEMBERED:
            _, oldest = self.ended.popitem(last=False)
            if not oldest.awaited and oldest.parent_pid in self.alive:
                self.outcomes.add(oldest)

    def unknown(self, pid: int) -> UnknownProcess:
        """The error for a process that is not alive."""
        what = "has ended" if 0 < pid <= self.pids.last else "never existed"
        return UnknownProcess(f"process {pid} {what}; `llmos ps` lists the living processes", pid=pid)

    def forgotten(self, pid: int) -> UnknownProcess:
        """The error for a process that is not alive, and whose outcome is unknown."""
        if not 0 < pid <= self.pids.last:
            return self.unknown(pid)
        return OutcomeForgotten(
            f"process {pid} has ended, and its outcome is no longer known: the daemon remembers the last {REMEMBERED} "
            f"processes, and up to {MOST} for which their parents have not waited yet; wait sooner",
            pid=pid,
        )
