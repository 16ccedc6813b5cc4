"""PendingRestarts: the durable processes of a previous run that have not restarted yet, and the threads that need them.

Called by the gate when a call finds no process with a pid or name. If that process is yet to restart, the call waits
for it. PendingRestarts never restarts a process itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import cast

from ipc.errors import LlmosError, UnknownProcess
from kernel.core.fiber import PARK
from kernel.core.plain_wait import PlainWait
from kernel.core.process import Thread
from kernel.gate import Gate


class PendingRestarts:
    """Task ids by pid (`pids`) and pids by name (`names`). The gate refers to this object while `pids` is not empty.

    The hook `why_unstarted` says why a task cannot restart now; None if it can.
    """

    def __init__(self, gate: Gate) -> None:
        self.pids: dict[int, int] = {}
        self.names: dict[str, int] = {}
        self._of_task: dict[int, set[int]] = {}
        self._names_of: dict[int, list[str]] = {}
        self._waiting: dict[int, dict[Thread, None]] = {}  # by pid
        self._gate = gate
        self.why_unstarted: Callable[[int], str | None] = _unknown

    def expect(self, processes: Iterable[tuple[int, int]], names: dict[str, int]) -> None:
        """Add `processes`, as pairs of pid and task id, and their `names` with the pids."""
        for pid, task in processes:
            self.pids[pid] = task
            self._of_task.setdefault(task, set()).add(pid)
        self.names.update(names)
        for name, pid in names.items():
            self._names_of.setdefault(pid, []).append(name)
        if self.pids:
            self._gate.pending_restarts = self

    def release_name(self, name: str | None, pid: int) -> None:
        """Free the name that was reserved for process `pid`, which is about to start."""
        if name is not None and self.names.get(name) == pid:
            del self.names[name]

    def remove(self, pid: int) -> None:
        """Process `pid` has restarted, or never will: wake the threads that wait for it."""
        task = self.pids.pop(pid, None)
        if task is None:
            return
        self._of_task[task].discard(pid)
        for name in self._names_of.pop(pid, ()):
            self.names.pop(name, None)
        for thread in self._waiting.pop(pid, ()):
            thread.wake()
        if not self.pids:
            self._gate.pending_restarts = None

    def remove_task(self, task: int) -> None:
        """Task `task` has ended: its processes will not restart, so wake the threads that wait for them."""
        for pid in tuple(self._of_task.pop(task, ())):
            self._of_task[task] = set()
            self.remove(pid)
        self._of_task.pop(task, None)

    def refuse_unstarted(self, error: LlmosError) -> None:
        """Raises `UnknownProcess` if the task of the process that `error` did not find cannot restart now."""
        pid = error.data.get("pid")
        why = self.why_unstarted(self.pids[pid]) if pid in self.pids else None
        if why is not None:
            raise UnknownProcess(
                f"process {pid} has not restarted, because its task is {why}; `llmos why {pid}` shows more", pid=pid
            ) from None

    async def wait_for_restart(self, error: LlmosError) -> bool:
        """If the process that `error` reports missing is yet to restart, wait for it; return True: repeat the call."""
        pid, name = error.data.get("pid"), error.data.get("name")
        thread, waited = cast("Thread", asyncio.current_task()), False
        while (awaited := pid if pid in self.pids else self.names.get(cast("str", name))) is not None:
            waiting = self._waiting.setdefault(awaited, {})
            waiting[thread] = None
            thread.waits_for = PlainWait(
                "recovery",
                "recovery",
                f"waiting for durable process {awaited}, which ran in a previous run of the daemon",
                f"process {awaited} has restarted, or its task has ended",
            )
            try:
                await PARK
            finally:
                waiting.pop(thread, None)
            waited = True
        return waited


def _unknown(task: int) -> str | None:
    """The default of `PendingRestarts.why_unstarted`."""
    return None
