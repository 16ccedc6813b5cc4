"""PendingRestarts: the durable processes of an earlier life that have not begun again yet, and who waits for them.

Asked by the gate when a call finds no process of a pid or name: nobody is to be told that it does not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import cast

from ipc.errors import LlmosError
from kernel.core.fiber import PARK
from kernel.core.process import Thread
from kernel.gate import Gate


class PendingRestarts:
    """`pids` (with their tasks) and `names` (with their pids) of those to come. While there are any, the gate asks."""

    def __init__(self, gate: Gate) -> None:
        self.pids: dict[int, int] = {}
        self.names: dict[str, int] = {}
        self._of_task: dict[int, set[int]] = {}
        self._names_of: dict[int, list[str]] = {}
        self._waiting: dict[int, dict[Thread, None]] = {}  # by pid
        self._gate = gate

    def expect(self, processes: Iterable[tuple[int, int]], names: dict[str, int]) -> None:
        """Pids with the ids of their tasks, and names with their pids."""
        for pid, task in processes:
            self.pids[pid] = task
            self._of_task.setdefault(task, set()).add(pid)
        self.names.update(names)
        for name, pid in names.items():
            self._names_of.setdefault(pid, []).append(name)
        if self.pids:
            self._gate.arrivals = self

    def release(self, name: str | None, pid: int) -> None:
        """Process `pid` begins, and may take the name that was kept for it."""
        if name is not None and self.names.get(name) == pid:
            del self.names[name]

    def came(self, pid: int) -> None:
        """Process `pid` has begun again, or never will."""
        task = self.pids.pop(pid, None)
        if task is None:
            return
        self._of_task[task].discard(pid)
        for name in self._names_of.pop(pid, ()):
            self.names.pop(name, None)
        for thread in self._waiting.pop(pid, ()):
            thread.wake()
        if not self.pids:
            self._gate.arrivals = None

    def ended(self, task: int) -> None:
        """None of the processes of `task` will come any more."""
        for pid in tuple(self._of_task.pop(task, ())):
            self._of_task[task] = set()
            self.came(pid)
        self._of_task.pop(task, None)

    async def resolve(self, error: LlmosError) -> bool:
        """Wait for whom `error` says there is none of. Whether it came: then the call is worth another try."""
        pid, name = error.data.get("pid"), error.data.get("name")
        thread, came = cast("Thread", asyncio.current_task()), False
        while (awaited := pid if pid in self.pids else self.names.get(cast("str", name))) is not None:
            waiting = self._waiting.setdefault(awaited, {})
            waiting[thread] = None
            thread.waits_for = "recovery"
            try:
                await PARK
            finally:
                waiting.pop(thread, None)
            came = True
        return came
